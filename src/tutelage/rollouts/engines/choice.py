"""Which engine writes: the slots where they know the model, transformers' `generate` elsewhere."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch

from tutelage.models import CausalLM
from tutelage.rollouts.engines.completion import Completion
from tutelage.rollouts.engines.hf import generate
from tutelage.rollouts.engines.sampling import Sampling
from tutelage.rollouts.engines.slots import refusal, write_in_slots

OwnEngineName = Literal["auto", "slots", "hf"]
"""Those that compute in this process, with the student as it is."""
EngineName = Literal["auto", "slots", "hf", "vllm"]


@runtime_checkable
class Engine(Protocol):
    """Completes prompts, as `generate` does."""

    def __call__(
        self,
        lm: CausalLM,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        generator: Sequence[torch.Generator],
        num_real: int | None,
    ) -> list[Completion]:
        """One completion for each prompt, in their order, from that prompt's generator alone."""
        ...


def write(
    lm: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    num_real: int | None = None,
) -> list[Completion]:
    """One completion for each prompt, by the fastest engine that knows the model.

    The same random numbers give the same completions in either engine, up to the rounding of the
    model. See `generate` and `write_in_slots`.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    reason = refusal(lm, num_tokens=longest + sampling.max_completion_tokens)
    engine = write_in_slots if reason is None else generate
    return engine(lm, prompts, sampling, generator=generator, num_real=num_real)


def engine_named(name: OwnEngineName) -> Engine:
    """The engine of ours that `rollouts.engine` asks for."""
    match name:
        case "auto":
            return write
        case "slots":
            return write_in_slots
        case "hf":
            return generate
