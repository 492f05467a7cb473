"""Engines that sample completions, token ids in and token ids out."""

from tutelage.rollouts.engines.choice import Engine, EngineName, engine_named, write
from tutelage.rollouts.engines.completion import Completion, end_ids
from tutelage.rollouts.engines.hf import generate
from tutelage.rollouts.engines.sampling import Sampling
from tutelage.rollouts.engines.slots import refusal, write_in_slots

__all__ = [
    "Completion",
    "Engine",
    "EngineName",
    "Sampling",
    "end_ids",
    "engine_named",
    "generate",
    "refusal",
    "write",
    "write_in_slots",
]
