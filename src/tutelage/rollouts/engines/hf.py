"""Completions sampled with transformers' own `generate`: works with every model it knows.

Token ids go in and token ids come out. Prompts are padded on the left, and the mask comes from
their lengths, so a pad token that is also the end-of-sequence token does no harm.
"""

# pyright: basic

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from tutelage.core.errors import ModelError
from tutelage.models.causal_lm import CausalLM
from tutelage.rollouts.engines.completion import (
    Completion,
    end_ids,
    refuse_bad_prompts,
    refuse_broken,
    uniforms_for,
)
from tutelage.rollouts.engines.sampling import Sampling, draw_scored


def generate(
    lm: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    num_real: int | None = None,
) -> list[Completion]:
    """One completion for each prompt, in the order of the prompts.

    Every row has its own random numbers, drawn from `generator` (a CPU generator) before the
    first token, so what is sampled does not depend on how rows are batched, up to the rounding
    of the model itself. The model's mode, its settings and the global generators are left as
    they were.

    Args:
        generator: one that all rows draw from in turn, or one for each prompt.
        num_real: entries of the vocabulary from here on are padding, and never drawn.

    Raises:
        DataError: a prompt is empty, or leaves no room for a completion.
        NumericsError: the model's scores are not finite.
    """
    refuse_bad_prompts(lm, prompts, sampling)
    uniforms = uniforms_for(len(prompts), sampling.max_completion_tokens, generator)
    longest_first = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    completions: dict[int, Completion] = {}
    with _ready(lm), torch.no_grad():
        for start in range(0, len(prompts), sampling.batch_rows):
            rows = longest_first[start : start + sampling.batch_rows]
            choice = _Choice(rows, uniforms[rows].to(lm.device), sampling, num_real=num_real)
            said = _one_batch(lm, [prompts[row] for row in rows], choice)
            completions.update(zip(rows, said, strict=True))
    return [completions[row] for row in range(len(prompts))]


@torch.no_grad()
def log_probabilities(lm: CausalLM, ids: Sequence[int]) -> Float[Tensor, " T"]:
    """Of each id behind those before it, the first left out, in float64; the model as it is."""
    row = torch.tensor([list(ids)], device=lm.device)
    with _ready(lm):
        logits = _generator(lm)(input_ids=row, use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]


@final
class _Choice(LogitsProcessor):
    """Leaves one token of each row standing: the drawn one, for `generate` to take greedily."""

    def __init__(
        self,
        rows: Sequence[int],
        uniforms: Float[Tensor, "B T"],
        sampling: Sampling,
        *,
        num_real: int | None,
    ) -> None:
        self.sampling = sampling
        self.logp: list[Float[Tensor, " B"]] = []
        """What the tokens so far were drawn with."""
        self._num_real = num_real
        self._rows = rows
        self._uniforms = uniforms
        self._num_drawn = 0

    def __call__(
        self, _input_ids: Int[Tensor, "B L"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        chosen, logp = draw_scored(
            scores[:, : self._num_real], self._uniforms[:, self._num_drawn], self.sampling
        )
        refuse_broken(chosen.tolist(), self._rows, [self._num_drawn] * len(self._rows))
        self._num_drawn += 1
        self.logp.append(logp)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _one_batch(lm: CausalLM, prompts: Sequence[Sequence[int]], choice: _Choice) -> list[Completion]:
    ends = end_ids(lm)
    pad_id = ends[0] if ends else 0
    longest = max(len(prompt) for prompt in prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.arange(longest) >= (longest - lengths)[:, None]
    config = GenerationConfig(
        max_new_tokens=choice.sampling.max_completion_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(ends) or None,
        pad_token_id=pad_id,
    )
    out = _generator(lm).generate(
        input_ids=ids.to(lm.device),
        attention_mask=mask.long().to(lm.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([choice]),
    )
    said: list[list[int]] = out[:, longest:].tolist()
    logp: list[list[float]] = torch.stack(choice.logp, dim=1).tolist()
    return [_cut_at_end(row, own, ends) for row, own in zip(said, logp, strict=True)]


def _generator(lm: CausalLM) -> Any:  # noqa: ANN401 - a model and a mixin at once
    if isinstance(lm.model, GenerationMixin):
        return lm.model
    raise ModelError(
        f"{type(lm.model).__name__} cannot generate; it must be a causal language model. "
        "Load it with AutoModelForCausalLM's classes."
    )


def _cut_at_end(ids: list[int], logp: list[float], ends: Sequence[int]) -> Completion:
    for place, token in enumerate(ids):
        if token in ends:
            said = slice(place + 1)
            return Completion(ids=tuple(ids[said]), truncated=False, logp=tuple(logp[said]))
    return Completion(ids=tuple(ids), truncated=True, logp=tuple(logp))


@contextmanager
def _ready(lm: CausalLM) -> Iterator[None]:
    """Evaluation mode, and none of the sampling habits that came with the model's files."""
    modes = [(module, module.training) for module in lm.modules()]
    habits = lm.model.generation_config
    lm.eval()
    lm.model.generation_config = GenerationConfig(eos_token_id=list(end_ids(lm)) or None)
    try:
        yield
    finally:
        lm.model.generation_config = habits
        for module, was_training in modes:
            module.training = was_training
