"""Where the rows of a step come from: data files, and models that write completions."""

from tutelage.rollouts.dataset import DatasetRollouts
from tutelage.rollouts.mixed import MixedRollouts
from tutelage.rollouts.placed import Order
from tutelage.rollouts.prompts import read_rows
from tutelage.rollouts.replay import ReplayRollouts
from tutelage.rollouts.settings import (
    DatasetRolloutSettings,
    MixedRolloutSettings,
    ReplayRolloutSettings,
    RolloutSettings,
    RowSettings,
    StudentRolloutSettings,
    TeacherRolloutSettings,
    WritingSettings,
)
from tutelage.rollouts.share import ShareClock
from tutelage.rollouts.source import RolloutSource
from tutelage.rollouts.written import StudentRollouts, TeacherRollouts, Writing

__all__ = [
    "DatasetRolloutSettings",
    "DatasetRollouts",
    "MixedRolloutSettings",
    "MixedRollouts",
    "Order",
    "ReplayRolloutSettings",
    "ReplayRollouts",
    "RolloutSettings",
    "RolloutSource",
    "RowSettings",
    "ShareClock",
    "StudentRolloutSettings",
    "StudentRollouts",
    "TeacherRolloutSettings",
    "TeacherRollouts",
    "Writing",
    "WritingSettings",
    "read_rows",
]
