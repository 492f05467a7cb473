"""One optimiser step and the loop around it: clocks, checkpoints and ranks included."""

from tutelage.training.clocks import TaidClock, learning_rate_at
from tutelage.training.hooks import (
    Ended,
    Evaluated,
    Event,
    Hook,
    ProgressBar,
    Saved,
    Started,
    StepDone,
    Stopping,
)
from tutelage.training.loop import Evaluate, Trainer, TrainingResult
from tutelage.training.metrics import StepRecord, StepTotals
from tutelage.training.ranks import Ranks
from tutelage.training.settings import TrainingSettings
from tutelage.training.state_tree import Stateful

__all__ = [
    "Ended",
    "Evaluate",
    "Evaluated",
    "Event",
    "Hook",
    "ProgressBar",
    "Ranks",
    "Saved",
    "Started",
    "Stateful",
    "StepDone",
    "StepRecord",
    "StepTotals",
    "Stopping",
    "TaidClock",
    "Trainer",
    "TrainingResult",
    "TrainingSettings",
    "learning_rate_at",
]
