"""Engines that sample completions, token ids in and token ids out."""

from tutelage.rollouts.engines.choice import (
    Engine,
    EngineName,
    OwnEngineName,
    engine_named,
    write,
)
from tutelage.rollouts.engines.completion import Completion, end_ids
from tutelage.rollouts.engines.hf import generate
from tutelage.rollouts.engines.sampling import Sampling
from tutelage.rollouts.engines.slots import refusal, write_in_slots
from tutelage.rollouts.engines.vllm import VllmEngine, VllmSettings

__all__ = [
    "Completion",
    "Engine",
    "EngineName",
    "OwnEngineName",
    "Sampling",
    "VllmEngine",
    "VllmSettings",
    "end_ids",
    "engine_named",
    "generate",
    "refusal",
    "write",
    "write_in_slots",
]
