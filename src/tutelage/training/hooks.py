"""What others may watch of a run: events, a progress display, and Ctrl-C.

A hook is a function of one event. It is called on the main rank and may read everything, change
nothing. Match on the events it cares about and ignore the rest.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeAlias, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)

from tutelage.core.records import Rollout
from tutelage.training.collect import Window
from tutelage.training.metrics import StepRecord


@final
@dataclass(frozen=True, kw_only=True)
class Started:
    """A run begins, or goes on."""

    step: int
    """Steps already done: 0 for a new run."""
    num_steps: int


@final
@dataclass(frozen=True, kw_only=True)
class Collected:
    """This rank's rows of a step are there, or of several; the steps are still to come."""

    step: int
    """The first step that they are for, counted from 1."""
    rollouts: Sequence[Rollout]


@final
@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something that a person should know of, and that stops nothing."""

    step: int
    text: str


@final
@dataclass(frozen=True, kw_only=True)
class StepDone:
    """The weights have moved and the log has its line."""

    record: StepRecord


@final
@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Numbers from held-out rows."""

    step: int
    numbers: Mapping[str, int | float]


@final
@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint is complete on disk."""

    step: int
    folder: Path


@final
@dataclass(frozen=True)
class Stopping:
    """Ctrl-C: the step at hand will be finished, then a checkpoint is saved."""


@final
@dataclass(frozen=True, kw_only=True)
class Ended:
    """Nothing follows, whether the run is finished, was stopped or failed."""

    step: int


Event: TypeAlias = Started | Collected | Noted | StepDone | Evaluated | Saved | Stopping | Ended
Hook: TypeAlias = Callable[[Event], None]


def events_of(window: Window, *, step: int) -> Iterator[Event]:
    """What there is to tell about the rows of the coming step, counted from 1."""
    if window.fresh:
        yield Collected(step=step, rollouts=window.fresh)
    if window.note:
        yield Noted(step=step, text=window.note)


@final
class ProgressBar:
    """Shows where a run is: steps, loss, tokens a second and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Draw what the event changes."""
        match event:
            case Started():
                self._start(event)
            case StepDone():
                self._advance(event.record)
            case Evaluated():
                numbers = "  ".join(f"{name} {value:.4g}" for name, value in event.numbers.items())
                self._console.print(f"step {event.step}: {numbers}", highlight=False)
            case Noted():
                self._console.print(f"note: {event.text}", highlight=False)
            case Stopping():
                self._console.print("Stopping after this step. Ctrl-C again drops the step.")
            case Ended():
                self._stop()
            case Collected() | Saved():
                pass

    def _start(self, event: Started) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=self._console,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=event.num_steps, completed=event.step)

    def _advance(self, record: StepRecord) -> None:
        if self._progress is None or self._task is None:
            return
        text = (
            f"loss {record.totals.loss:.4f}  {record.tokens_per_second:,.0f} tokens/s  "
            f"{clock_face(record.eta_seconds)} left"
        )
        self._progress.update(self._task, completed=record.step, description=text)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def clock_face(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@final
class Interrupts:
    """Turns the first Ctrl-C (or SIGTERM) into a request; the second interrupts at once.

    Only in the main thread: Python delivers signals to no other.
    """

    def __init__(self, on_request: Callable[[], None]) -> None:
        self._on_request = on_request
        self._before: dict[signal.Signals, Any] = {}
        self.requested = False

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._on_request()
