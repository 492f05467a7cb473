"""Row kernels of the Kullback-Leibler family: values out, gradients over the student's scores."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.objectives.row_kernels.compared import (
    centre_by,
    compare,
    dot,
    scratch_like,
    through_softmax,
)

_CLOSE_ENOUGH = 1.02


def forward_kl_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """Gradient q - p."""
    c = compare(student, teacher)
    values = -dot(c.p, c.gap)
    c.q.sub_(c.p)
    return values


def reverse_kl_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """Gradient q * (gap - KL) with gap = log q - log p."""
    c = compare(student, teacher)
    values = dot(c.q, c.gap)
    through_softmax(c.q, c.gap, c.q)
    return values


def symmetric_kl_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    forward_weight: float,
    reverse_weight: float,
) -> Float[Tensor, " R"]:
    """A weighted sum of both directions."""
    c = compare(student, teacher)
    values = dot(c.q, c.gap) * reverse_weight - dot(c.p, c.gap) * forward_weight
    c.gap.mul_(reverse_weight).mul_(c.q).add_(c.p, alpha=-forward_weight)
    centre_by(c.gap, c.q, out=c.q)
    return values


def adaptive_kl_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, head_mass: float
) -> Float[Tensor, " R"]:
    """Both directions, weighed by the head's share of the L1 gap."""
    c = compare(student, teacher)
    share = _head_share(c.q, c.p, head_mass)
    values = (1 - share) * dot(c.q, c.gap) - share * dot(c.p, c.gap)
    c.gap.mul_((1 - share)[:, None]).mul_(c.q).addcmul_(c.p, share[:, None], value=-1)
    centre_by(c.gap, c.q, out=c.q)
    return values


def _head_share(
    q: Float[Tensor, "R V"], p: Float[Tensor, "R V"], head_mass: float
) -> Float[Tensor, " R"]:
    """How much of sum |p - q| lies in the teacher's head; a half where the sum is 0.

    The head holds the likeliest entries while their masses add up to no more than `head_mass`,
    and always the first.
    """
    gap = scratch_like(p, "l1")
    torch.sub(p, q, out=gap).abs_()
    whole = gap.sum(dim=-1)
    if p.device.type == "cpu":
        head = torch.stack([_gap_in_head(*both, head_mass) for both in zip(gap, p, strict=True)])
    else:
        order = p.argsort(dim=-1, descending=True, stable=True)
        inside = p.gather(-1, order).cumsum(dim=-1) <= head_mass
        inside[:, 0] = True
        head = (gap.gather(-1, order) * inside).sum(dim=-1)
    return torch.where(whole > 0, head / whole, 0.5)


def _gap_in_head(
    gap: Float[Tensor, " V"], p: Float[Tensor, " V"], head_mass: float
) -> Float[Tensor, ""]:
    above, edge = row_head(p, head_mass)
    inside = torch.gt(p, above, out=scratch_like(p, "kept"))
    return torch.dot(gap, inside) + gap[edge].sum()


def row_head(p: Float[Tensor, " V"], head_mass: float) -> tuple[float, Int[Tensor, " H"]]:
    """One row's head: all entries above the first answer, and those with the ids of the second.

    A sort of the whole row costs more than everything else together. So the threshold above which
    just enough mass lies is halved in on, and only the entries at the edge are sorted.
    """
    kept = scratch_like(p, "kept")
    top = high = float(p.amax())
    # All entries below (1 - head_mass) / V together leave the others more than head_mass.
    low, mass = min((1 - head_mass) / (2 * p.shape[0]), top / 2), 0.0
    while high > _CLOSE_ENOUGH * low:
        middle = math.sqrt(high * low)
        above = float(torch.threshold(p, middle, 0.0, out=kept).sum())
        if above > head_mass:
            low = middle
        else:
            high, mass = middle, above
    ids = ((p > low) & (p <= high)).nonzero()[:, 0]
    found, order = p[ids].sort(descending=True, stable=True)
    size = int((found.cumsum(dim=0) + mass <= head_mass).sum())
    return high, ids[order[: max(size, int(high == top))]]


def todi_rows(student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    """Slopes -a p + (1 - a) q (gap + 1), a = p / (p + q); the value is that of Jeffreys."""
    c = compare(student, teacher)
    values = dot(c.q, c.gap) - dot(c.p, c.gap)
    lower = scratch_like(c.gap, "share")
    torch.sigmoid(c.gap, out=lower)
    # lower = 1 - a. In terms of it the slope is lower * (p + q * (gap + 1)) - p.
    c.gap.add_(1).mul_(c.q).add_(c.p).mul_(lower).sub_(c.p)
    centre_by(c.gap, c.q, out=c.q)
    return values


def total_variation_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """Slopes of a half by who rates an entry higher."""
    c = compare(student, teacher)
    torch.sub(c.q, c.p, out=c.gap)
    values = torch.abs(c.gap, out=c.p).sum(dim=-1) / 2
    c.gap.sign_()
    through_softmax(c.q, c.gap, c.q)
    c.q.mul_(0.5)
    return values
