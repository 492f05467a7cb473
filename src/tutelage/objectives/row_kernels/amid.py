"""Row kernels of AMiD: divergences between a side and r, the normalised power mean of both.

With w the student's part of the mean, a slope G over log r is w * (G - r * sum G) over log q.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.row_kernels.compared import (
    centre_by,
    dot,
    log_softmax_,
    scratch_like,
    softmax_into,
    top_of,
)
from tutelage.objectives.row_kernels.powers import alpha_beta_between

Between = Literal["teacher_mixture", "student_mixture", "mixture_teacher", "mixture_student"]


@final
@dataclass(frozen=True)
class _Mixed:
    """The mixture r as it stands to the one side that it is compared with."""

    r: Float[Tensor, "R V"]
    ratio: Float[Tensor, "R V"]
    """log r - log side."""
    r_logp: Float[Tensor, "R V"]
    q: Float[Tensor, "R V"]
    student_part: Float[Tensor, "R V"] | float
    """How much log r moves with log q before r is normalised."""


def amid_kl_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    between: Between,
    teacher_share: float,
    power: float,
) -> Float[Tensor, " R"]:
    """KL from the mixture to a side or back."""
    with_student = "student" in between
    m = _mix(student, teacher, with_student=with_student, share=teacher_share, power=power)
    if between.endswith("mixture"):
        side = m.q
        if not with_student:
            side = scratch_like(student, "p")
            softmax_into(side, teacher)
        values = -dot(side, m.ratio)
        # Slope -side over log r, and over its own log, up to a multiple of side, -side * ratio.
        slope = m.r.sub_(side).mul_(m.student_part)
        if with_student:
            slope.addcmul_(m.q, m.ratio, value=-1)
    else:
        values = dot(m.r, m.ratio)
        m.ratio.sub_(values[:, None]).mul_(m.student_part)
        slope = m.r.mul_(m.ratio.sub_(1) if with_student else m.ratio)
    centre_by(slope, m.q, out=student)
    return values


def amid_alpha_beta_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    between: Between,
    teacher_share: float,
    power: float,
    powers: tuple[float, float],
) -> Float[Tensor, " R"]:
    """Alpha-beta divergence from the mixture to a side or back.

    Args:
        powers: alpha and beta, both above 0.
    """
    with_student = "student" in between
    m = _mix(student, teacher, with_student=with_student, share=teacher_share, power=power)
    larger = torch.maximum(m.r_logp, student if with_student else teacher, out=m.r_logp)
    if between.startswith("mixture"):
        # The other way round is the same divergence with the powers exchanged.
        powers = powers[1], powers[0]
    slope = teacher
    values, slope_of_side = alpha_beta_between(
        larger,
        m.ratio,
        powers=powers,
        slope_of_second=slope,
        rise=student,
        slope_of_first=with_student,
    )
    centre_by(slope, m.r, out=slope)
    slope.mul_(m.student_part)
    if with_student:
        slope.add_(slope_of_side)
    centre_by(slope, m.q, out=student)
    return values


def _mix(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    with_student: bool,
    share: float,
    power: float,
) -> _Mixed:
    """Leaves log-probabilities where the scores were."""
    log_softmax_(student)
    log_softmax_(teacher)
    ratio, mixed, r, q = (scratch_like(student, name) for name in ("ratio", "mixed", "r", "q"))
    torch.sub(student, teacher, out=ratio)
    student_part: Tensor | float = 1 - share
    if power == 0:
        torch.lerp(student, teacher, share, out=mixed)
        ratio.mul_(-share if with_student else 1 - share)
    else:
        mean, student_part = _power_mean(ratio, share, power)
        torch.maximum(student, teacher, out=mixed).add_(mean, alpha=1 / power)
        # From the mean over the larger side to the mean over this one.
        ratio = ratio.clamp_(max=0).neg_() if with_student else ratio.clamp_(min=0)
        ratio.add_(mean, alpha=1 / power)
    softmax_into(r, mixed)
    total = (top_of(mixed) - top_of(r).log()).to(mixed.dtype)[:, None]
    softmax_into(q, student)
    return _Mixed(
        r=r, ratio=ratio.sub_(total), r_logp=mixed.sub_(total), q=q, student_part=student_part
    )


def _power_mean(
    gap: Float[Tensor, "R V"], teacher_share: float, power: float
) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R V"]]:
    """Log of (mean / larger side)^power, and the student's part of the mean.

    With e = (smaller / larger)^power - 1 it is log(1 + e * the smaller side's share).
    """
    lead, fall, part = (scratch_like(gap, name) for name in ("lead", "fall", "part"))
    torch.sign(gap, out=lead)
    torch.abs(gap, out=fall).mul_(-power)
    torch.expm1(fall, out=fall)
    # 1 + e where the teacher leads.
    torch.mul(lead, -0.5, out=part).add_(0.5).mul_(fall).add_(1).mul_(1 - teacher_share)
    share_of_fall = lead.mul_(teacher_share - 0.5).add_(0.5).mul_(fall)
    part.div_(torch.add(share_of_fall, 1, out=fall))
    return torch.log1p(share_of_fall, out=share_of_fall), part
