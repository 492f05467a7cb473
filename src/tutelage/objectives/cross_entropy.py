"""Cross-entropy: with the completion's own tokens, or with the teacher's whole distribution."""

from typing import Literal, final

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.objectives import row_kernels
from tutelage.objectives.objective import Objective
from tutelage.objectives.softmax import expected, log_softmax_at


@final
class CrossEntropy(Objective):
    """Minus the log-probability of what should have been said: plain supervised training.

    It is not 0 where student and teacher agree, but the entropy of what is taught.
    """

    kind: Literal["cross_entropy"] = "cross_entropy"

    labels: Literal["auto", "tokens", "teacher"] = "auto"
    """What is taught: `tokens`, the completion's own ids; `teacher`, its whole distribution;
    `auto`, the ids where the target carries them and the distribution elsewhere."""

    @property
    @override
    def needs_teacher(self) -> bool:
        """Only where the teacher's distribution is asked for by name."""
        return self.labels == "teacher"

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """Nats, by token ids or the teacher's distribution."""
        student_logp = log_softmax_at(student_logits)
        if labels is not None and self.labels != "teacher":
            refuse_strangers(labels, num_entries=student_logp.shape[-1])
            return -student_logp.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
        if self.labels == "tokens":
            raise DataError(
                "cross_entropy.labels is tokens, and the target carries no token ids; it must "
                "carry the completion's ids. Use labels: teacher to learn its distribution."
            )
        return expected(log_softmax_at(teacher_logits).exp(), -student_logp)

    @override
    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows in place."""
        by_tokens = labels is not None and self.labels != "teacher"
        sides = (student_logits,) if by_tokens else (student_logits, teacher_logits)
        if (self.labels == "tokens" and labels is None) or not row_kernels.all_finite(*sides):
            return super().rows(student_logits, teacher_logits, labels)
        if labels is None or not by_tokens:
            return row_kernels.teacher_cross_entropy_rows(student_logits, teacher_logits)
        refuse_strangers(labels, num_entries=student_logits.shape[-1])
        return row_kernels.token_cross_entropy_rows(student_logits, labels)


def refuse_strangers(labels: Int[Tensor, "*at"], *, num_entries: int) -> None:
    """Refuse labels that are no entry of both models.

    Raises:
        DataError: it names the first.
    """
    strange = labels[(labels < 0) | (labels >= num_entries)]
    if strange.numel():
        raise DataError(
            f"A label is {int(strange[0])}; it must be a token id from 0 to {num_entries - 1}, the "
            "entries both models have. Leave out untrained positions with loss_mask."
        )
