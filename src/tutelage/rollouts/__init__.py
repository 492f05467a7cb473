"""Where the rows of a step come from: data files, and the engines that sample completions."""

from tutelage.rollouts.source import RolloutSource

__all__ = ["RolloutSource"]
