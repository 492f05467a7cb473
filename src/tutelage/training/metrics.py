"""What a step was like, in numbers that are the same on all ranks."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import nn

from tutelage.core.seeds import capture_globals, restore_globals

_SMOOTH = 0.9
"""How much of the running mean of a step's seconds is kept: about the last ten steps count."""


@final
@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """One optimiser step over all micro-batches and ranks."""

    loss: float
    """Nats: the mean over the step's trained tokens (or rows, with `sequence_mean`)."""
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    """Trained tokens."""
    moved_cross_entropy: float | None = None
    """Cross-entropy of the student to the moved target; only where an adaptive clock needs it."""
    stop_requested: bool = False
    """Ctrl-C on any rank."""
    measures: Mapping[str, float] = field(default_factory=dict[str, float])
    """What a policy's ratios and the two parts of its loss were like."""
    routers: Mapping[str, float] = field(default_factory=dict[str, float])
    """What routing was like, where a student with experts is watched; see `numbers_of`."""


@final
@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step as hooks, the log and trackers see it."""

    step: int
    """Steps done, this one included."""
    num_steps: int
    totals: StepTotals
    learning_rate: float
    t: float | None
    """Where the moved target stood during this step; None without a clock."""
    seconds: float
    """Since the run began, stops left out."""
    tokens_per_second: float
    eta_seconds: float
    """Until the last step, at the pace of the last few."""
    rollouts: Mapping[str, float] = field(default_factory=dict[str, float])
    """What models have written for this step, and the shares that decided it; see `Window`."""

    def numbers(self) -> dict[str, float]:
        """What the log keeps besides step, phase and seconds."""
        numbers: dict[str, float] = {
            "loss": self.totals.loss,
            "learning_rate": self.learning_rate,
            "grad_norm": self.totals.grad_norm,
            "num_tokens": self.totals.num_tokens,
            "tokens_per_second": self.tokens_per_second,
        }
        if self.t is not None:
            numbers["t"] = self.t
        if self.totals.moved_cross_entropy is not None:
            numbers["moved_cross_entropy"] = self.totals.moved_cross_entropy
        return {**numbers, **self.totals.measures, **self.totals.routers, **self.rollouts}


@final
@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a call of `train` ended."""

    step: int
    """Optimiser steps done, those of earlier calls included."""
    interrupted: bool
    """Ctrl-C came before the last step."""
    resumed_from: int | None
    """The checkpoint's step, where there was one."""
    last: StepRecord | None
    """The last step of this call; None where nothing was left to do."""
    evaluations: Sequence[Mapping[str, int | float]]
    """What `evaluate` said in this call, each with its `step`."""
    trained_tokens: int
    """Over the whole run."""
    seconds: float
    """Over the whole run, stops left out."""
    checkpoint: Path | None
    """The newest one."""
    advice: str
    """How to go on after Ctrl-C, for people; empty otherwise."""


def undisturbed(
    evaluate: Callable[[], Mapping[str, float]], student: nn.Module
) -> dict[str, float]:
    """What `evaluate` says, the student in evaluation mode.

    Whatever it draws or switches, training goes on as if it had not happened.
    """
    randomness = capture_globals()
    was_training = student.training
    student.eval()
    with torch.no_grad():
        numbers = dict(evaluate())
    student.train(was_training)
    restore_globals(randomness)
    return numbers


def advice_after(step: int, num_steps: int, newest: Path | None) -> str:
    """How to go on with a run that was stopped, for people."""
    kept = f"Everything is in {newest}: resume" if newest else "Nothing was saved: train"
    return f"Stopped after step {step} of {num_steps}. {kept} to go on."


@final
class Stopwatch:
    """Seconds of a run over all its resumptions, and the pace of the last steps."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started = time.perf_counter()
        self._lap_started = self._started
        self._step_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._before + time.perf_counter() - self._started

    def go_on_from(self, seconds: float) -> None:
        """Count what earlier processes of this run took."""
        self._before = seconds

    def start_step(self) -> None:
        """A step begins now; what lay between is nobody's."""
        self._lap_started = time.perf_counter()

    def end_step(self) -> float:
        """Seconds of the step that ends now."""
        step_seconds = max(time.perf_counter() - self._lap_started, 1e-9)
        running = self._step_seconds
        self._step_seconds = (
            step_seconds if running is None else _SMOOTH * running + (1 - _SMOOTH) * step_seconds
        )
        return step_seconds

    def eta_seconds(self, num_steps: int) -> float:
        """Until so many more steps are done."""
        return num_steps * (self._step_seconds or 0.0)
