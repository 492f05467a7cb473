"""Direct logit distillation: a weighted squared difference of raw or normalised scores."""

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import row_kernels
from tutelage.objectives.objective import Objective
from tutelage.objectives.softmax import log_softmax_at, upcast

Normalisation = Literal["none", "mean", "std", "min", "max", "range"]


@final
class DirectLogit(Objective):
    """Half the weighted mean of the squared difference of two models' scores.

        1/2 * sum_v w(v) * (n(student)(v) - n(teacher)(v))^2

    Entries that either side rules out count for nothing. Without normalisation the loss sees a
    constant added to all of a model's scores, which its probabilities do not.

    Source: the baseline of Kim et al. 2025 (CSD), arXiv:2509.25837, equation 4 and table 5.
    """

    kind: Literal["direct_logit"] = "direct_logit"

    weight: Literal["uniform", "teacher", "student"] = "uniform"
    """Whose probabilities weigh the tokens, as constants; `uniform` is the plain mean."""

    normalisation: Normalisation = "none"
    """What is done to both models' scores: `mean`, `min` and `max` are taken off; `std` takes off
    the mean and divides by the standard deviation, `range` maps min to 0 and max to 1."""

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """The squared difference; labels play no part."""
        allowed = (student_logits > -torch.inf) & (teacher_logits > -torch.inf)
        student, teacher = upcast(student_logits), upcast(teacher_logits)
        gap = _normalised(student, allowed, self.normalisation) - _normalised(
            teacher, allowed, self.normalisation
        )
        return (self._weight(student, teacher, allowed) * gap.square()).sum(dim=-1) / 2

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
        return row_kernels.direct_logit_rows(
            student_logits,
            teacher_logits,
            weight=self.weight,
            normalisation=self.normalisation,
        )

    @torch.no_grad()
    def _weight(
        self,
        student: Float[Tensor, "*at V"],
        teacher: Float[Tensor, "*at V"],
        allowed: Tensor,
    ) -> Float[Tensor, "*at V"]:
        if self.weight == "uniform":
            scores = torch.zeros_like(student)
        else:
            scores = student if self.weight == "student" else teacher
        return log_softmax_at(scores.masked_fill(~allowed, -torch.inf)).exp()


def _normalised(
    scores: Float[Tensor, "*at V"], allowed: Tensor, how: Normalisation
) -> Float[Tensor, "*at V"]:
    """The scores brought to a common footing; entries not allowed are 0."""
    kept = scores.masked_fill(~allowed, 0.0)
    if how == "none":
        return kept
    if how in ("mean", "std"):
        count = allowed.sum(dim=-1, keepdim=True)
        centred = (kept - kept.sum(dim=-1, keepdim=True) / count).masked_fill(~allowed, 0.0)
        if how == "mean":
            return centred
        variance = centred.square().sum(dim=-1, keepdim=True) / count
        return centred / _or_one(variance).sqrt()
    highest = scores.masked_fill(~allowed, -torch.inf).amax(dim=-1, keepdim=True)
    lowest = scores.masked_fill(~allowed, torch.inf).amin(dim=-1, keepdim=True)
    start = highest if how == "max" else lowest
    width = _or_one(highest - lowest) if how == "range" else 1.0
    return ((kept - start) / width).masked_fill(~allowed, 0.0)


def _or_one(size: Tensor) -> Tensor:
    """Scores that are all the same have no size to divide by."""
    return torch.where(size > 0, size, 1.0)
