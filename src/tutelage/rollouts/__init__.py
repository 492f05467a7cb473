"""Where the rows of a step come from: data files, and the engines that sample completions."""

from tutelage.rollouts.dataset import DatasetRollouts
from tutelage.rollouts.prompts import read_rows
from tutelage.rollouts.source import RolloutSource

__all__ = ["DatasetRollouts", "RolloutSource", "read_rows"]
