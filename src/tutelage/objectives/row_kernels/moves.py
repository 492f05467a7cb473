"""Row kernels of moved targets: the teacher's rows, overwritten in place."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.row_kernels.compared import dot, scratch_like, softmax_into, top_of

Share = float | Float[Tensor, " R"]

_MOST_STEPS = 100


def mix_rows(student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], t: Share) -> None:
    """(1 - t) * student + t * teacher over the teacher's finite scores: TAID's target."""
    if isinstance(t, Tensor):
        torch.lerp(student, teacher, t.to(teacher.dtype)[:, None], out=teacher)
    else:
        torch.lerp(student, teacher, t, out=teacher)


def budget_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], nats: float
) -> Float[Tensor, " R"]:
    """The largest t whose mixture is at most `nats` from the student, in fp64; both sides stay.

    Newton's method on log cost over log t, nearly a line of slope 2, inside a bracket that is
    halved where a step leaves it. It ends where the square of the next step is below rounding,
    or the step within what rounding does to the cost.
    """
    way = _Way(student, teacher)
    eps = torch.finfo(student.dtype).eps
    short = max(math.sqrt(eps) / 4, 4 * eps / nats)
    low, high = torch.zeros_like(way.start), torch.ones_like(way.start)
    t = high
    for _ in range(_MOST_STEPS):
        cost, slope = way.cost_and_slope(t)
        within = cost <= nats
        # Who can afford the teacher itself has no bracket left after the first look.
        low, high = torch.where(within, t, low), torch.where(within, high, t)
        step = (nats / cost).log() * cost / slope
        newton = t * step.exp()
        inside = (newton > low) & (newton < high)
        arrived = step.abs() <= short
        low = torch.where(arrived, torch.minimum(newton, high), low)
        if bool((arrived | (high - low <= eps / 2)).all()):
            break
        t = torch.where(arrived, low, torch.where(inside, newton, (low + high) / 2))
    return low


@final
class _Way:
    """From the student to the teacher along the mixture of scores."""

    def __init__(self, student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]) -> None:
        self.base, self.gap = scratch_like(student, "base"), scratch_like(student, "gap")
        self.mixed, square = scratch_like(student, "mixed"), scratch_like(student, "square")
        # A constant changes no mixture, and digits are lost to it.
        torch.sub(student, student.amax(dim=-1, keepdim=True), out=self.base)
        torch.sub(teacher, teacher.amax(dim=-1, keepdim=True), out=self.gap).sub_(self.base)
        softmax_into(self.mixed, self.base)
        self.start = -top_of(self.mixed).log()
        self.gap.sub_(dot(self.mixed, self.gap)[:, None])
        self.square = torch.mul(self.gap, self.gap, out=square)

    def cost_and_slope(
        self, t: Float[Tensor, " R"]
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        """KL(mixture at t || student) = t * E gap - log E_student exp(t * gap); d / d log t."""
        total = self._log_sum_exp(t)
        mean = dot(self.mixed, self.gap)
        variance = dot(self.mixed, self.square) - mean.square()
        return t * mean - (total - self.start), t.square() * variance

    def _log_sum_exp(self, t: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
        """Of base + t * gap, whose softmax is left in `mixed`."""
        share = t.to(self.gap.dtype)[:, None]
        torch.addcmul(self.base, self.gap, share, out=self.mixed)
        top = top_of(self.mixed)
        softmax_into(self.mixed, self.mixed)
        return top - top_of(self.mixed).log()
