"""Cross-entropy: with the completion's own tokens, or with the teacher's whole distribution."""

from typing import Literal, final

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import DataError
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

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        student_logp = log_softmax_at(student_logits)
        if labels is not None and self.labels != "teacher":
            return -student_logp.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
        if self.labels == "tokens":
            raise DataError(
                "cross_entropy.labels is tokens, and the target carries no token ids; it must "
                "carry the completion's ids. Use labels: teacher to learn its distribution."
            )
        return expected(log_softmax_at(teacher_logits).exp(), -student_logp)
