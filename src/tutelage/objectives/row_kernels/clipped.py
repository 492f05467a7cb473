"""Row kernels of clipped divergences: entry by entry, or a whole position after its sum.

U are the entries whose term is below the threshold. The slopes over log q are taken up to a
multiple of q, which `centre_by` takes out again, so that nothing cancels where the sides agree.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.row_kernels.compared import centre_by, compare, scratch_like
from tutelage.objectives.row_kernels.mixtures import logs_to_mixture


def forward_kl_pointwise_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, threshold: float
) -> Float[Tensor, " R"]:
    """Gradient P_U q - p on U and P_U q off it, P_U the teacher's mass on U; terms -p * gap."""
    c = compare(student, teacher)
    c.gap.mul_(c.p).neg_()
    below, values = _clip(c.gap, threshold)
    slope = torch.sub(c.q, c.p.mul_(below), out=c.gap)
    centre_by(slope, c.q, c.q)
    return values


def reverse_kl_pointwise_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, threshold: float
) -> Float[Tensor, " R"]:
    """Slope q * (gap + 1) on U and 0 off it; terms q * gap.

    Less q everywhere it is the term itself on U, and -q off it.
    """
    c = compare(student, teacher)
    slope = c.gap.mul_(c.q)
    term = c.p.copy_(slope)
    below, values = _clip(term, threshold)
    slope.mul_(below).addcmul_(c.q, below.sub_(1))
    centre_by(slope, c.q, c.q)
    return values


def jsd_pointwise_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    teacher_share: float,
    threshold: float,
    scale: float = 1.0,
) -> Float[Tensor, " R"]:
    """Slope (1 - b) q log(q/m) on U, b the teacher's share; everything times `scale`.

    The terms b p log(p/m) + (1 - b) q log(q/m) are never negative, and are compared as scaled.
    """
    b = teacher_share
    c = compare(student, teacher)
    student_part, teacher_part, left = logs_to_mixture(c, teacher_share=b)
    slope = student_part.add_(left).mul_(c.q).mul_((1 - b) * scale)
    term = c.p.mul_(teacher_part.add_(left)).mul_(b * scale).add_(slope)
    below, values = _clip(term, threshold)
    slope.mul_(below)
    centre_by(slope, c.q, c.q)
    return values


def _clip(
    term: Float[Tensor, "R V"], threshold: float
) -> tuple[Float[Tensor, "R V"], Float[Tensor, " R"]]:
    """1 where a term is below the threshold and 0 elsewhere, and the sum of the clipped terms."""
    below = torch.lt(term, threshold, out=scratch_like(term, "below"))
    return below, term.clamp_(max=threshold).sum(dim=-1)


def stopped_above(
    values: Float[Tensor, " R"], gradient: Float[Tensor, "R V"], threshold: float
) -> Float[Tensor, " R"]:
    """min(value, threshold); the gradient of a row above it is taken away in place."""
    gradient.masked_fill_((values >= threshold)[:, None], 0.0)
    return values.clamp(max=threshold)


def slowed_above(
    values: Float[Tensor, " R"], gradient: Float[Tensor, "R V"], threshold: float
) -> Float[Tensor, " R"]:
    """min(value, threshold); the gradient of a row above it is scaled down alike, in place."""
    gradient.mul_((threshold / values.clamp(min=threshold))[:, None])
    return values.clamp(max=threshold)
