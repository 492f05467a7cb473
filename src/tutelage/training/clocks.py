"""Clocks: what changes on its own as a run goes on, once for each optimiser step.

A clock is read before a step and moved after it, by the trainer alone and on all ranks alike.
Evaluation reads clocks and never moves one.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol, final, runtime_checkable

from tutelage.objectives.moved_targets import Move, Taid
from tutelage.training.settings import TrainingSettings

_TINY = 1e-15
"""Keeps a loss of zero from dividing by zero (the same number as in the official code)."""


@runtime_checkable
class Clock(Protocol):
    """Something that moves once for each optimiser step, and that a checkpoint can hold."""

    def move(self, *, loss: float, step: int) -> None:
        """Go on after the step with this index, counted from 0; the loss is the step's mean."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: a `Tree`."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@final
class TaidClock:
    """How far the target has moved from the student (0) to the teacher (1).

    After the step with index n (from 0) of N, whose mean loss was L:

        linear       t_lin = t_start + (t_end - t_start) * n / N
        adaptive     delta = (L_before - L) / L_before
                     m     = momentum * m + (1 - momentum) * delta
                     t     = min(t_end, max(t_lin, t + alpha * sigmoid(m) * (1 - t)))
        exponential  t     = min(t_end, max(t_lin, 1 - (1 - t_start) * exp(-rate * n / N)))
        constant     t     = t_start

    The first loss is only stored. `alpha="auto"` is 2 * rate / N: the adaptive schedule then
    keeps the shape of the exponential one on a run of any length. With an alpha of at most 2 / N
    the adaptive schedule never leaves the straight line. A loss that is not finite moves nothing
    and is counted: one NaN in m would silently make the schedule linear for ever.

    Source: Shing et al. 2025 (TAID), arXiv:2501.16937, algorithm 1 and the official code.
    """

    def __init__(self, settings: Taid, *, num_steps: int) -> None:
        self._settings = settings
        self._num_steps = num_steps
        self._t = settings.t_start
        self._momentum = 0.0
        self._loss_before: float | None = None
        self.num_updates = 0
        self.num_skipped = 0
        self.num_adaptive_leads = 0
        """Updates in which the adaptive term was ahead of the straight line."""

    @property
    def t(self) -> float:
        """For the coming step."""
        return self._t

    @property
    def alpha(self) -> float:
        """The largest adaptive stride, with "auto" worked out for this run's length."""
        if self._settings.alpha == "auto":
            return 2 * self._settings.rate / self._num_steps
        return self._settings.alpha

    def move(self, *, loss: float, step: int) -> None:
        """Go on after the step with this index, counted from 0.

        Args:
            loss: the step's mean over all ranks and micro-batches.
        """
        if not math.isfinite(loss):
            self.num_skipped += 1
            return
        self.num_updates += 1
        match self._settings.schedule:
            case "linear":
                self._t = self._line(step)
            case "exponential":
                self._t = min(self._settings.t_end, max(self._line(step), self._curve(step)))
            case "adaptive":
                self._adapt(loss, step)
            case "constant":
                pass

    def _adapt(self, loss: float, step: int) -> None:
        before, self._loss_before = self._loss_before, loss
        if before is None:
            return
        keep = self._settings.momentum
        delta = (before - loss) / (before + _TINY)
        self._momentum = keep * self._momentum + (1 - keep) * delta
        ahead = self._t + self.alpha * _sigmoid(self._momentum) * (1 - self._t)
        self.num_adaptive_leads += ahead > self._line(step)
        self._t = min(self._settings.t_end, max(self._line(step), ahead))

    def _line(self, step: int) -> float:
        start, end = self._settings.t_start, self._settings.t_end
        return start + (end - start) * step / self._num_steps

    def _curve(self, step: int) -> float:
        left = math.exp(-self._settings.rate * step / self._num_steps)
        return 1 - (1 - self._settings.t_start) * left

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        return {
            "t": self._t,
            "momentum": self._momentum,
            "loss_before": self._loss_before,
            "num_updates": self.num_updates,
            "num_skipped": self.num_skipped,
            "num_adaptive_leads": self.num_adaptive_leads,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the same t bit for bit."""
        self._t = state["t"]
        self._momentum = state["momentum"]
        self._loss_before = state["loss_before"]
        self.num_updates = state["num_updates"]
        self.num_skipped = state["num_skipped"]
        self.num_adaptive_leads = state["num_adaptive_leads"]


def taid_clock(move: Move, settings: TrainingSettings) -> TaidClock | None:
    """The clock of a target that moves by one; None for the others."""
    return TaidClock(move, num_steps=settings.num_steps) if isinstance(move, Taid) else None


def _sigmoid(x: float) -> float:
    # A loss that grew a thousandfold makes m hugely negative, where exp(-m) would overflow.
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """The learning rate of the step with this index, counted from 0.

    The warm-up rises to the highest rate on its last step. What follows falls towards its final
    share, which would be reached on the step after the last: no step is wasted on a rate of zero.
    """
    highest, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / (settings.num_steps - warmup)
    match settings.schedule:
        case "constant":
            left = 1.0
        case "linear":
            left = 1 - done
        case "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
    final = settings.final_learning_rate_share
    return highest * (final + (1 - final) * left)
