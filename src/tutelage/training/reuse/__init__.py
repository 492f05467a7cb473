"""One batch of rollouts for several steps: who is picked, how it is cut, what is still to come."""

from tutelage.training.reuse.lessons import Lesson
from tutelage.training.reuse.parts import parts_of, picks_of
from tutelage.training.reuse.supply import Groups, Reuse, Supply

__all__ = ["Groups", "Lesson", "Reuse", "Supply", "parts_of", "picks_of"]
