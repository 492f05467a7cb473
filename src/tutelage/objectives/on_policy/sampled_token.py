"""Reverse KL seen through the one token that the student drew."""

from typing import Annotated, Literal, final

import torch
from annotated_types import Gt
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.objectives import row_kernels
from tutelage.objectives.cross_entropy import refuse_strangers
from tutelage.objectives.divergences.kl import ReverseKL
from tutelage.objectives.objective import Objective
from tutelage.objectives.softmax import log_softmax_at


def sampled_log_ratio(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    labels: Int[Tensor, "*at"],
) -> Float[Tensor, "*at"]:
    """The log-ratio at y, log student - log teacher, with gradient (log-ratio) * grad log student.

    Over y ~ student, the mean of the value is KL(student || teacher) and the mean of the gradient
    is that of KL(student || teacher): both without bias, unless y was drawn with a top-p, a
    top-k or a temperature that the log-probabilities do not have. The gradient is not the slope of
    the value, whose mean is 0, but that of half its square.

    -inf where the student could not have drawn y, +inf where the teacher rules it out, 0 where
    both do.
    """
    ids = labels.long().unsqueeze(-1)
    drawn, taught = (side.gather(-1, ids).squeeze(-1) for side in (student_logp, teacher_logp))
    value = torch.where(drawn == taught, 0.0, drawn - taught).detach()
    possible = drawn.isfinite() & taught.isfinite()
    # Adds nothing to the value, and only the gradient; an infinite value gets none.
    steered = torch.where(possible, drawn, 0.0)
    return value + torch.where(possible, value, 0.0) * (steered - steered.detach())


@final
class SampledToken(Objective):
    """log student - log teacher at the completion's own token, trained as a policy gradient.

    Its mean over tokens the student drew is an estimate of `reverse_kl` without bias, in nats; a
    single token's value may be negative. That is what is reported; the surrogate -A log student(y)
    with A held still, whose gradient this is, has a mean that tells nothing. Noisier than
    `reverse_kl`, which looks at the whole vocabulary for the same two forwards.

    Source: on-policy distillation by sampled tokens, as in OPSD (arXiv:2601.18734) and MiniLLM.
    """

    kind: Literal["sampled_token"] = "sampled_token"

    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides both models' logits. Without bias only where the rollouts were drawn at the same."""

    @override
    def on_average(self) -> Objective:
        return ReverseKL(temperature=self.temperature)

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """Nats at the labels, at the temperature."""
        return sampled_log_ratio(
            log_softmax_at(student_logits, self.temperature),
            log_softmax_at(teacher_logits, self.temperature),
            self._tokens(labels, num_entries=student_logits.shape[-1]),
        )

    @override
    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows in place."""
        if not row_kernels.all_finite(student_logits, teacher_logits):
            return super().rows(student_logits, teacher_logits, labels)
        tokens = self._tokens(labels, num_entries=student_logits.shape[-1])
        if self.temperature == 1:
            return row_kernels.sampled_token_rows(student_logits, teacher_logits, tokens)
        student_logits.div_(self.temperature)
        teacher_logits.div_(self.temperature)
        values = row_kernels.sampled_token_rows(student_logits, teacher_logits, tokens)
        student_logits.div_(self.temperature)
        return values

    def _tokens(self, labels: Int[Tensor, "*at"] | None, *, num_entries: int) -> Int[Tensor, "*at"]:
        if labels is None:
            raise DataError(
                "sampled_token has a target without token ids; it must carry the completion's "
                "own. Use reverse_kl, which needs none, or give the target labels."
            )
        refuse_strangers(labels, num_entries=num_entries)
        return labels
