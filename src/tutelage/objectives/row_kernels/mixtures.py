"""Row kernels of the divergences against a mixture of student and teacher.

With m = b * p + (1 - b) * q and gap = log q - log p, the parts of the mixture are logistic:
(1 - b) q / m = sigmoid(gap - logit b) and b p / m = sigmoid(logit b - gap). Nothing underflows.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.row_kernels.compared import (
    Compared,
    compare,
    dot,
    scratch_like,
    through_softmax,
)

# Beyond this log-ratio the smaller side is below the rounding of the larger, in fp64 too.
_WIDEST_GAP = 40.0


def _log_of_part(out: Float[Tensor, "R V"], part: Float[Tensor, "R V"], share: float) -> float:
    """log(part / share) into `out`, small where the sides agree; returns what rounding left."""
    torch.log(part, out=out)
    level = math.log(share)
    rounded = float(torch.tensor(level, dtype=out.dtype))
    out.sub_(rounded)
    return rounded - level


def _logistic(c: Compared, *, sign: float, logit: float) -> Float[Tensor, "R V"]:
    """sigmoid(sign * gap + logit)."""
    part = scratch_like(c.gap, "part")
    torch.mul(c.gap, sign, out=part).add_(logit)
    return part.sigmoid_()


def logs_to_mixture(
    c: Compared, *, teacher_share: float
) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R V"], float]:
    """log(q / m) and log(p / m), both less a constant that comes last; the gap is overwritten."""
    c.gap.clamp_(-_WIDEST_GAP, _WIDEST_GAP)
    part = _logistic(c, sign=1.0, logit=math.log1p(-teacher_share) - math.log(teacher_share))
    left = _log_of_part(part, part, 1 - teacher_share)
    return part, torch.sub(part, c.gap, out=c.gap), left


def jsd_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    teacher_share: float,
    scale: float = 1.0,
) -> Float[Tensor, " R"]:
    """Slope (1 - b) * log(q / m), b the teacher's share; everything times `scale`."""
    b = teacher_share
    c = compare(student, teacher)
    student_part, teacher_part, left = logs_to_mixture(c, teacher_share=b)
    values = (1 - b) * dot(c.q, student_part) + b * dot(c.p, teacher_part) + left
    through_softmax(c.q, student_part, c.q)
    c.q.mul_((1 - b) * scale)
    return values * scale


def skew_forward_kl_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, teacher_share: float
) -> Float[Tensor, " R"]:
    """Slope -(1 - a) * p / m, a the teacher's share."""
    a = teacher_share
    c = compare(student, teacher)
    c.gap.clamp_(-_WIDEST_GAP, _WIDEST_GAP)
    part = _logistic(c, sign=-1.0, logit=math.log(a) - math.log1p(-a))
    left = _log_of_part(c.gap, part, a)
    values = dot(c.p, c.gap) + left
    through_softmax(c.q, part, c.q)
    c.q.mul_(-(1 - a) / a)
    return values


def skew_reverse_kl_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    student_share: float,
    detach_mixture: bool = False,
) -> Float[Tensor, " R"]:
    """Slope log(q / m) - a * q / m, a the student's share; without the second if detached."""
    a = student_share
    c = compare(student, teacher)
    c.gap.clamp_(-_WIDEST_GAP, _WIDEST_GAP)
    part = _logistic(c, sign=1.0, logit=math.log(a) - math.log1p(-a))
    left = _log_of_part(c.gap, part, a)
    values = dot(c.q, c.gap) + left
    if not detach_mixture:
        c.gap.sub_(part)
    through_softmax(c.q, c.gap, c.q)
    return values
