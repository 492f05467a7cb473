"""What every engine gives back, and what all of them ask of their prompts and random numbers."""

# pyright: basic

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.errors import DataError, NumericsError
from tutelage.models.causal_lm import CausalLM
from tutelage.rollouts.engines.sampling import Sampling


@final
@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model said to one prompt."""

    ids: tuple[int, ...]
    """Ends with the end-of-sequence token that stopped it, unless it was truncated."""
    truncated: bool
    """Cut at the length limit, so there is no end-of-sequence token."""
    logp: tuple[float, ...] = field(default=(), compare=False)
    """What each token was drawn with, its end included: see `draw_scored`. Left out of
    comparisons, for a model's rounding depends on the rows beside it."""

    @property
    def is_empty(self) -> bool:
        """Nothing was said before the end."""
        return len(self.ids) == 1 and not self.truncated


def end_ids(lm: CausalLM) -> tuple[int, ...]:
    """Every token id that ends a completion of this model."""
    configured = lm.model.generation_config
    found = None if configured is None else configured.eos_token_id
    if found is None:
        found = lm.config.eos_token_id
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def uniforms_for(
    num_rows: int, num_tokens: int, generator: torch.Generator | Sequence[torch.Generator]
) -> Float[Tensor, "B T"]:
    """The random numbers of every token of every row, drawn before the first token is.

    Args:
        generator: one that all rows draw from in turn, or one for each row.
    """
    if isinstance(generator, torch.Generator):
        return torch.rand(num_rows, num_tokens, generator=generator, dtype=torch.float64)
    uniforms = torch.empty(num_rows, num_tokens, dtype=torch.float64)
    for row, own in zip(uniforms, generator, strict=True):
        torch.rand(num_tokens, generator=own, out=row)
    return uniforms


def refuse_bad_prompts(lm: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Refuse a prompt that is empty, or one that leaves no room for a completion."""
    room = lm.config.to_dict().get("max_position_embeddings")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(
                f"Prompt {row} is empty; it must hold at least one token. "
                "Leave the row out, or use a chat template that opens the conversation."
            )
        wanted = len(prompt) + sampling.max_completion_tokens
        if room is not None and wanted > room:
            raise DataError(
                f"Prompt {row} with its completion is up to {wanted} tokens; this model must not "
                f"read more than {room}. Lower max_completion_tokens or drop the prompt."
            )


def refuse_broken(tokens: Sequence[int], rows: Sequence[int], places: Sequence[int]) -> None:
    """Refuse a draw from scores that were not finite, which `draw_scored` marks with -1."""
    for token, row, place in zip(tokens, rows, places, strict=True):
        if token < 0:
            raise NumericsError(
                f"The model's scores for prompt {row} at completion token {place} hold nan or "
                "infinity; they must be finite. "
                "Check the model's weights, or load it in float32."
            )
