"""Where programs run that nobody has read: apart, cut off, under limits."""

from tutelage.rewards.sandbox.cell import Cell, Isolation, Limits, best_isolation
from tutelage.rewards.sandbox.run import Ended, run_program
from tutelage.rewards.sandbox.scorer import Scorer

__all__ = ["Cell", "Ended", "Isolation", "Limits", "Scorer", "best_isolation", "run_program"]
