"""Objectives across tokenizers, over groups of tokens that say the same."""

from tutelage.objectives.cross_vocabulary.dual_space import Bridge, DualScores, DualSpace
from tutelage.objectives.cross_vocabulary.objective import (
    ULD,
    AlignedKL,
    CrossVocabulary,
)
from tutelage.objectives.cross_vocabulary.outcomes import GroupScores, outcomes, sorted_distance

__all__ = [
    "ULD",
    "AlignedKL",
    "Bridge",
    "CrossVocabulary",
    "DualScores",
    "DualSpace",
    "GroupScores",
    "outcomes",
    "sorted_distance",
]
