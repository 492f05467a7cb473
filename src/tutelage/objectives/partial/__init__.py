"""Losses from a teacher that kept only part of its vocabulary, and which objectives allow it."""

from tutelage.objectives.partial.answers import Answer, refusal
from tutelage.objectives.partial.per_token import (
    partial_per_token,
    partial_rows,
    refuse,
    refuse_move,
    rows_of_target,
)
from tutelage.objectives.partial.top_k import sampled_cross_entropy, top_k_divergence

__all__ = [
    "Answer",
    "partial_per_token",
    "partial_rows",
    "refusal",
    "refuse",
    "refuse_move",
    "rows_of_target",
    "sampled_cross_entropy",
    "top_k_divergence",
]
