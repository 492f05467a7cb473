"""The row kernel of supports: any kernel on a few classes, its gradient spread over the rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.objectives.row_kernels.compared import softmax_into

# So far below the top a probability is 0 in fp64 too, and the score is still finite.
_FAR = 1e4


@final
@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which entries of each row are classes of their own."""

    ids: Int[Tensor, "R K"]
    again: Bool[Tensor, "R K"] | None
    """True where an id was named before, and does not count; None where none was."""
    tail: bool
    """Whether all others are one more class, or nothing."""


def restricted_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    kept: Kept,
    kernel: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, " R"]:
    """A kernel's values on the kept classes, and in `student` the gradient over all entries.

    Log-sum-exp over the rest is the score of their class, and a softmax over the rest says how
    that class's gradient is shared out. The kernel works in fp64: classes are few, so it costs
    nothing, and their rounding errors would not average out.
    """
    return rows_against_classes(student, _classes(teacher, kept), kept, kernel)


def rows_against_classes(
    student: Float[Tensor, "R V"],
    few_teacher: Float[Tensor, "R C"],
    kept: Kept,
    kernel: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, " R"]:
    """The same against a teacher of whom the classes are all that is known.

    Args:
        few_teacher: scores of the kept classes in fp64, and of the rest behind them where there is
            a tail. -inf has no mass.
    """
    few_teacher = few_teacher.maximum(few_teacher.amax(dim=-1, keepdim=True) - _FAR)
    few_student = _classes(student, kept)
    values = kernel(few_student, few_teacher).to(student.dtype)
    gradient = few_student.to(student.dtype)
    num_kept = kept.ids.shape[1]
    if kept.tail:
        student.mul_(gradient[:, num_kept:])
    else:
        student.zero_()
    student.scatter_add_(1, kept.ids, gradient[:, :num_kept])
    return values


def _classes(scores: Float[Tensor, "R V"], kept: Kept) -> Float[Tensor, "R C"]:
    """Scores of the classes in fp64; with a tail, `scores` becomes a softmax of the rest."""
    few = scores.gather(1, kept.ids).double()
    lowest = few.amax(dim=-1, keepdim=True) - _FAR
    if kept.again is not None:
        few = torch.where(kept.again, lowest, few)
    if not kept.tail:
        return few
    scores.scatter_(1, kept.ids, -torch.inf)
    top_of_rest = scores.amax(dim=-1, keepdim=True)
    empty = top_of_rest == -torch.inf
    softmax_into(scores, scores.masked_fill_(empty, 0.0))
    tail = top_of_rest.double() - scores.amax(dim=-1, keepdim=True).double().log()
    return torch.cat([few, torch.where(empty, lowest, tail)], dim=1)
