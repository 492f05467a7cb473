"""Row kernels of direct logit distillation, with every way of bringing scores together.

A slope G over normalised scores n becomes one over the scores themselves: what was taken off
takes back its part of the sum of G, and what was divided by its part of the sum of G * n.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.row_kernels.compared import dot, scratch_like, softmax_into

Weight = Literal["student", "teacher", "uniform"]
Normalisation = Literal["none", "mean", "std", "min", "max", "range"]


def direct_logit_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    weight: Weight,
    normalisation: Normalisation = "none",
) -> Float[Tensor, " R"]:
    """Gradient w * gap through the normalisation, the weights being constants."""
    held = None
    if weight != "uniform":
        held = scratch_like(student, "p")
        softmax_into(held, student if weight == "student" else teacher)
    match normalisation:
        case "none" | "mean":
            return _shifted(student, teacher, held, centred=normalisation == "mean")
        case "std":
            return _standardised(student, teacher, held)
        case "min" | "max":
            return _from_an_end(student, teacher, held, lowest=normalisation == "min")
        case "range":
            return _in_range(student, teacher, held)


def _shifted(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    held: Float[Tensor, "R V"] | None,
    *,
    centred: bool,
) -> Float[Tensor, " R"]:
    student.sub_(teacher)
    if centred:
        student.sub_(student.mean(dim=-1, keepdim=True))
    if held is None:
        # Without weights a centred gap stays centred.
        values = dot(student, student) / (2 * student.shape[1])
        student.div_(student.shape[1])
        return values
    torch.mul(student, held, out=teacher)
    values = dot(student, teacher) / 2
    if centred:
        teacher.sub_(teacher.mean(dim=-1, keepdim=True))
    student.copy_(teacher)
    return values


def _weighed(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    held: Float[Tensor, "R V"] | None,
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R V"]]:
    """Values, and slopes over the student's normalised scores; both sides are normalised."""
    gap = teacher
    torch.sub(student, teacher, out=gap)
    if held is None:
        values = dot(gap, gap) / (2 * gap.shape[1])
        return values, gap.div_(gap.shape[1])
    slope = torch.mul(gap, held, out=held)
    return dot(gap, slope) / 2, slope


def _standardised(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    held: Float[Tensor, "R V"] | None,
) -> Float[Tensor, " R"]:
    size, _ = _standardise(student), _standardise(teacher)
    values, slope = _weighed(student, teacher, held)
    stretch = dot(slope, student) / student.shape[1]
    slope.sub_(slope.mean(dim=-1, keepdim=True))
    student.mul_(-stretch[:, None]).add_(slope).div_(size)
    return values


def _standardise(rows: Float[Tensor, "R V"]) -> Float[Tensor, "R 1"]:
    rows.sub_(rows.mean(dim=-1, keepdim=True))
    size = _or_one(dot(rows, rows)[:, None] / rows.shape[1]).sqrt()
    rows.div_(size)
    return size


def _from_an_end(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    held: Float[Tensor, "R V"] | None,
    *,
    lowest: bool,
) -> Float[Tensor, " R"]:
    end, teacher_end = (_end(rows, lowest=lowest) for rows in (student, teacher))
    at_end = _share_at(student, end, "at_end")
    student.sub_(end)
    teacher.sub_(teacher_end)
    values, slope = _weighed(student, teacher, held)
    torch.addcmul(slope, at_end, slope.sum(dim=-1, keepdim=True), value=-1, out=student)
    return values


def _in_range(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    held: Float[Tensor, "R V"] | None,
) -> Float[Tensor, " R"]:
    low, high = (_end(student, lowest=lowest) for lowest in (True, False))
    width = _or_one(high - low)
    at_low, at_high = _share_at(student, low, "at_low"), _share_at(student, high, "at_high")
    student.sub_(low).div_(width)
    teacher.sub_(_end(teacher, lowest=True))
    teacher.div_(_or_one(_end(teacher, lowest=False)))
    values, slope = _weighed(student, teacher, held)
    to_high = dot(slope, student)[:, None]
    to_low = slope.sum(dim=-1, keepdim=True) - to_high
    slope.addcmul_(at_low, to_low, value=-1).addcmul_(at_high, to_high, value=-1)
    torch.div(slope, width, out=student)
    return values


def _end(rows: Float[Tensor, "R V"], *, lowest: bool) -> Float[Tensor, "R 1"]:
    return rows.amin(dim=-1, keepdim=True) if lowest else rows.amax(dim=-1, keepdim=True)


def _share_at(
    rows: Float[Tensor, "R V"], end: Float[Tensor, "R 1"], name: str
) -> Float[Tensor, "R V"]:
    """1 where a row has this value, over how often it has it; 0 elsewhere."""
    found = scratch_like(rows, name)
    torch.eq(rows, end, out=found)
    return found.div_(found.sum(dim=-1, keepdim=True))


def _or_one(size: Float[Tensor, "R 1"]) -> Float[Tensor, "R 1"]:
    """Scores that are all the same have no size to divide by."""
    return torch.where(size > 0, size, 1.0)
