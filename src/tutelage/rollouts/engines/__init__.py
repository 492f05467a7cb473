"""Engines that sample completions, token ids in and token ids out."""

from tutelage.rollouts.engines.hf import Completion, end_ids, generate
from tutelage.rollouts.engines.sampling import Sampling

__all__ = ["Completion", "Sampling", "end_ids", "generate"]
