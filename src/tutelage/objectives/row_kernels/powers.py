"""Row kernels of the alpha-beta divergence, everywhere on its plane."""

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


def power_of_(logs: Float[Tensor, "R V"], power: float) -> Float[Tensor, "R V"]:
    """exp(power * log), in place."""
    return logs.mul_(power * _LOG2_E).exp2_()


def alpha_beta_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, alpha: float, beta: float
) -> Float[Tensor, " R"]:
    """Slope (q^s - p^alpha q^beta) / alpha with s = alpha + beta, and its limits on the axes."""
    if alpha == 0 and beta == 0:
        return _squared_log_ratio_rows(student, teacher)
    log_softmax_(student)
    log_softmax_(teacher)
    if alpha == 0 or beta == 0:
        return _axis_rows(student, teacher, alpha=alpha, beta=beta)
    larger, ratio, rise = (scratch_like(student, name) for name in ("larger", "ratio", "rise"))
    torch.maximum(student, teacher, out=larger)
    torch.sub(student, teacher, out=ratio)
    values, _ = alpha_beta_between(
        larger,
        ratio,
        powers=(alpha, beta),
        slope_of_second=teacher,
        rise=rise,
        slope_of_first=False,
    )
    softmax_into(student, student)
    centre_by(teacher, student, out=student)
    return values


def alpha_beta_between(
    larger: Float[Tensor, "R V"],
    ratio: Float[Tensor, "R V"],
    *,
    powers: tuple[float, float],
    slope_of_second: Float[Tensor, "R V"],
    rise: Float[Tensor, "R V"],
    slope_of_first: bool = True,
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R V"]]:
    """Value and slopes over both logs for two measures a and b, given by how they compare.

    The divergence is that of `alpha_beta` with a for the teacher. With the larger side's power M
    taken out and A = exp(-alpha |u|) - 1, B = exp(-beta |u|) - 1, everything is a product of M
    with sums of A, B and AB: nothing cancels where the sides agree beyond what must, and nothing
    overflows where they do not.

    Args:
        larger: log of the larger of a and b; destroyed.
        ratio: u = log(b / a); destroyed.
        powers: alpha and beta.
        slope_of_second: left holding (b^s - a^alpha b^beta) / alpha.
        rise: left holding (a^s - a^alpha b^beta) / beta, if `slope_of_first`.
    """
    alpha, beta = powers
    s = alpha + beta
    lead = scratch_like(ratio, "lead")
    torch.sign(ratio, out=lead)
    ratio.abs_()
    a_part, b_part = slope_of_second, scratch_like(ratio, "fall")
    torch.expm1(torch.mul(ratio, -alpha, out=a_part), out=a_part)
    torch.expm1(torch.mul(ratio, -beta, out=b_part), out=b_part)
    both = torch.mul(a_part, b_part, out=ratio)
    power = power_of_(larger, s)
    half = both.mul_(0.5)
    # Where b leads it is alpha B - beta A + alpha AB, where a leads beta A - alpha B + beta AB.
    torch.mul(b_part, alpha / s, out=rise).add_(a_part, alpha=-beta / s)
    torch.addcmul(half, lead, rise.add_(half, alpha=(alpha - beta) / s), out=rise)
    values = dot(power, rise) / (alpha * beta)
    if slope_of_first:
        torch.addcmul(half, lead, b_part.add_(half), out=rise).mul_(power).div_(beta)
    torch.addcmul(half, lead, a_part.add_(half), value=-1, out=a_part).mul_(power).div_(alpha)
    return values, rise


def _axis_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, alpha: float, beta: float
) -> Float[Tensor, " R"]:
    """One of the two powers is 0; the sides are log-probabilities.

    The value is sum_v (a log(a/b) - a + b) / power^2 over powers of both sides, a of the side
    whose power is not 0. The slope is (q^alpha - p^alpha) / alpha or q^beta log(q/p).
    """
    power = alpha + beta
    larger, ratio, lead, expm1, half = (
        scratch_like(student, name) for name in ("larger", "ratio", "lead", "rise", "half")
    )
    torch.maximum(student, teacher, out=larger)
    torch.sub(student, teacher, out=ratio)
    torch.sign(ratio, out=lead)
    drop = torch.abs(ratio, out=teacher).mul_(-power)
    torch.expm1(drop, out=expm1)
    powers, slope = power_of_(larger, power), ratio
    if beta == 0:
        torch.mul(expm1, lead, out=slope).mul_(powers).div_(-alpha)
    else:
        slope.mul_(power_of_(half.copy_(student), beta))
        lead.neg_()
    # Of the larger power: expm1 - drop where a leads, drop * exp(drop) - expm1 where b does.
    torch.mul(expm1, drop, out=half).mul_(0.5)
    torch.sub(half, expm1.sub_(drop), out=drop).mul_(lead).add_(half)
    values = dot(powers, drop) / power**2
    softmax_into(student, student)
    centre_by(slope, student, out=student)
    return values


def _squared_log_ratio_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """Both powers are 0. Slope log(q/p)."""
    c = compare(student, teacher)
    values = dot(c.gap, c.gap) / 2
    centre_by(c.gap, c.q, out=c.q)
    return values
