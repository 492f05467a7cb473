"""One optimiser step and the loop around it: clocks, checkpoints and ranks included."""

from tutelage.training.clocks import Clock, TaidClock, learning_rate_at
from tutelage.training.hooks import (
    Collected,
    Ended,
    Evaluated,
    Event,
    Hook,
    Noted,
    ProgressBar,
    Saved,
    Started,
    StepDone,
    Stopping,
)
from tutelage.training.loop import Evaluate, Trainer
from tutelage.training.metrics import StepRecord, StepTotals, TrainingResult
from tutelage.training.policy import WatchRouters
from tutelage.training.ranks import Ranks
from tutelage.training.reuse import Groups
from tutelage.training.routers import RouterOwner, RoutingSettings
from tutelage.training.settings import TrainingSettings
from tutelage.training.state_tree import Stateful

__all__ = [
    "Clock",
    "Collected",
    "Ended",
    "Evaluate",
    "Evaluated",
    "Event",
    "Groups",
    "Hook",
    "Noted",
    "ProgressBar",
    "Ranks",
    "RouterOwner",
    "RoutingSettings",
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
    "WatchRouters",
    "learning_rate_at",
]
