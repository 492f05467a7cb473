"""Row kernels of concrete score distillation."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.row_kernels.compared import (
    Compared,
    compare,
    dot,
    scratch_like,
    softmax_into,
)

Weight = Literal["student", "teacher", "uniform"]


def concrete_score_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    weights: tuple[Weight, Weight],
    weight_temperature: float = 1.0,
) -> Float[Tensor, " R"]:
    """(w1 * (gap - mean2) + w2 * (gap - mean1)) / 2, the weights being constants."""
    first, second = weights
    warm = _warm(student, teacher, weights, weight_temperature)
    c = compare(student, teacher)
    if first == second:
        return _same_weights(c, warm, first)
    sides = {"student": c.q, "teacher": c.p, **warm}
    (mean1, var1), (mean2, var2) = (_moments(c, sides, whose) for whose in weights)
    values = (var1 + var2 + (mean1 - mean2).square()) / 4
    far1 = scratch_like(c.gap, "far")
    torch.sub(c.gap, mean2[:, None], out=far1)
    c.gap.sub_(mean1[:, None])
    _weigh(far1, sides, first)
    _weigh(c.gap, sides, second)
    torch.add(far1, c.gap, out=c.q)
    c.q.mul_(0.5)
    return values


def mixture_concrete_score_rows(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    *,
    teacher_share: float,
    weight_temperature: float = 1.0,
) -> Float[Tensor, " R"]:
    """The same with both weights teacher_share * p + (1 - teacher_share) * q."""
    warm = _warm(student, teacher, ("student", "teacher"), weight_temperature)
    c = compare(student, teacher)
    q, p = warm.get("student", c.q), warm.get("teacher", c.p)
    mixed = scratch_like(c.gap, "far")
    torch.lerp(q, p, teacher_share, out=mixed)
    return _same_weights(c, {"student": mixed}, "student")


def _warm(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    weights: tuple[Weight, ...],
    temperature: float,
) -> dict[str, Tensor]:
    """Weights at their own temperature, for the sides that are asked for."""
    warm: dict[str, Tensor] = {}
    if temperature == 1:
        return warm
    for name, scores in (("student", student), ("teacher", teacher)):
        if name in weights:
            warm[name] = scratch_like(scores, f"warm_{name}")
            softmax_into(warm[name], torch.div(scores, temperature, out=warm[name]))
    return warm


def _same_weights(c: Compared, warm: dict[str, Tensor], whose: Weight) -> Float[Tensor, " R"]:
    sides = {"student": c.q, "teacher": c.p, **warm}
    mean, variance = _moments(c, sides, whose)
    c.gap.sub_(mean[:, None])
    if whose != "uniform":
        # What is left of the mean is rounding; where one entry has nearly all weight, so is
        # that entry's gap.
        c.gap.sub_(dot(sides[whose], c.gap)[:, None])
    _weigh(c.gap, sides, whose)
    c.q.copy_(c.gap)
    return variance / 2


def _moments(
    c: Compared, sides: dict[str, Tensor], whose: Weight
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Weighted mean and variance of the gap, the variance from the centred gap."""
    far = scratch_like(c.gap, "centred")
    if whose == "uniform":
        mean = c.gap.mean(dim=-1)
        torch.sub(c.gap, mean[:, None], out=far)
        return mean, dot(far, far) / far.shape[1]
    weight = sides[whose]
    mean = dot(weight, c.gap)
    torch.sub(c.gap, mean[:, None], out=far)
    return mean, dot(far.square_(), weight)


def _weigh(rows: Float[Tensor, "R V"], sides: dict[str, Tensor], whose: Weight) -> None:
    if whose == "uniform":
        rows.div_(rows.shape[1])
    else:
        rows.mul_(sides[whose])
