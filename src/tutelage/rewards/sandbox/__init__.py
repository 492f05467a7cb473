"""Where programs run that nobody has read: apart, cut off, under limits."""

from tutelage.rewards.sandbox.cell import (
    Isolation,
    IsolationChoice,
    Limits,
    best_isolation,
    chosen_isolation,
)
from tutelage.rewards.sandbox.run import Ended, run_program
from tutelage.rewards.sandbox.scorer import Scorer

__all__ = [
    "Ended",
    "Isolation",
    "IsolationChoice",
    "Limits",
    "Scorer",
    "best_isolation",
    "chosen_isolation",
    "run_program",
]
