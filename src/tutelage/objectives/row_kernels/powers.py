"""Row kernels of the alpha-beta divergence and of AMiD's alpha-mixtures."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.row_kernels.compared import (
    centre_by,
    compare,
    dot,
    log_softmax_,
    scratch_like,
    softmax_into,
)

_LOG2_E = 1 / math.log(2)
_HIGHEST = 80.0


def alpha_beta_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, alpha: float, beta: float
) -> Float[Tensor, " R"]:
    """Slope (q^s - p^alpha q^beta) / alpha with s = alpha + beta, both above 0.

    With u the log-ratio and the larger side's power taken out, value and slope are products of
    exp(-|u| times something) - 1: nothing cancels where the sides agree and nothing overflows
    where they do not.
    """
    s = alpha + beta
    log_softmax_(student)
    log_softmax_(teacher)
    larger, drop, part, rise = (scratch_like(student, n) for n in ("p", "drop", "part", "rise"))
    torch.maximum(student, teacher, out=larger)
    torch.sub(student, teacher, out=part)
    torch.abs(part, out=drop).neg_()
    lead = part.sign_()
    # p^alpha q^beta where the teacher leads, q^s where the student does.
    torch.mul(student, beta, out=teacher).add_(larger, alpha=alpha).mul_(_LOG2_E).exp2_()
    teacher.mul_(torch.expm1(torch.mul(drop, alpha, out=rise), out=rise)).mul_(lead)
    # alpha where the student leads, beta where the teacher does.
    lead.mul_((alpha - beta) / 2).add_(s / 2)
    torch.expm1(torch.mul(drop, part, out=rise), out=rise)
    torch.expm1(drop.mul_(s), out=drop).mul_(part).div_(s).sub_(rise)
    values = dot(larger.mul_(s * _LOG2_E).exp2_(), drop) / (alpha * beta)
    softmax_into(student, student)
    teacher.div_(-alpha)
    centre_by(teacher, student)
    student.copy_(teacher)
    return values


def amid_kl_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    between: str,
    teacher_share: float,
    power: float,
) -> Float[Tensor, " R"]:
    """KL between a side and r = softmax(log of the power mean), the power above 0.

    The student's part of the mean, w, is also how much log r moves with log q before r is
    normalised.
    """
    c = compare(student, teacher)
    w, r, log_ratio = (scratch_like(c.gap, name) for name in ("part", "r", "ratio"))
    torch.mul(c.gap, -power, out=r).clamp_(max=_HIGHEST)
    torch.expm1(r, out=r).mul_(teacher_share)
    torch.add(r, 1, out=w).reciprocal_().mul_(1 - teacher_share)
    # log(r / q) before normalising.
    torch.log1p(r, out=log_ratio).div_(power)
    torch.exp2(torch.mul(log_ratio, _LOG2_E, out=r), out=r).mul_(c.q)
    total = r.sum(dim=-1, keepdim=True)
    r.div_(total)
    log_ratio.sub_(total.log())
    if between == "teacher_mixture":
        values = -dot(c.p, log_ratio.add_(c.gap))
        r.sub_(c.p).mul_(w)
    elif between == "student_mixture":
        values = -dot(c.q, log_ratio)
        r.sub_(c.q).mul_(w).addcmul_(c.q, log_ratio, value=-1)
    elif between == "mixture_teacher":
        log_ratio.add_(c.gap)
        values = dot(r, log_ratio)
        r.mul_(log_ratio.sub_(values[:, None])).mul_(w)
    else:
        values = dot(r, log_ratio)
        w.mul_(log_ratio.sub_(values[:, None])).sub_(1)
        r.mul_(w)
    centre_by(r, c.q)
    c.q.copy_(r)
    return values
