"""What transformers says of completions that vLLM wrote."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.core.records import Prompt, Rollout
from tutelage.models import CausalLM
from tutelage.rollouts.engines import Completion, Sampling, VllmEngine
from tutelage.text import collate

PROMPTS = [[72, 105, 33], [7] * 20, [256, 258, 100, 101], [9, 8, 200]]
LONG_PROMPT = [(7 * at) % 250 for at in range(200)]
"""Longer than a block of vLLM's cache, so that the next who asks finds it there."""


def write(
    engine: VllmEngine,
    lm: CausalLM,
    sampling: Sampling,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    *,
    seeds: Sequence[int] | None = None,
    num_real: int | None = None,
) -> list[Completion]:
    chosen = range(len(prompts)) if seeds is None else seeds
    generators = [torch.Generator().manual_seed(seed) for seed in chosen]
    return engine(lm, prompts, sampling, generator=generators, num_real=num_real)


@torch.no_grad()
def scores(
    lm: CausalLM, said: Sequence[Completion], prompts: Sequence[Sequence[int]] = PROMPTS
) -> tuple[Tensor, Tensor]:
    """Logits in float64 where each completion token is predicted, and the tokens."""
    rows = [
        Rollout(prompt=Prompt(student_ids=tuple(prompt)), completion_ids=one.ids)
        for prompt, one in zip(prompts, said, strict=True)
    ]
    batch = collate(rows)
    hidden = lm.hidden(batch.student)[batch.student.predicts]
    return hidden.double() @ lm.head.weight.double().T, batch.labels.long()


def logp(
    lm: CausalLM,
    said: Sequence[Completion],
    prompts: Sequence[Sequence[int]] = PROMPTS,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    num_real: int | None = None,
) -> Tensor:
    """Of the completions' tokens, after temperature and top-k."""
    logits, labels = scores(lm, said, prompts)
    logits = logits[:, :num_real] / temperature
    if top_k is not None:
        lowest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


def told(said: Sequence[Completion]) -> Tensor:
    """What vLLM says that they were drawn with."""
    return torch.tensor([value for one in said for value in one.logp], dtype=torch.float64)


def gap(lm: CausalLM, said: Sequence[Completion], prompts: Sequence[Sequence[int]] = PROMPTS):
    """The largest difference between both, at temperature 1."""
    return float((logp(lm, said, prompts) - told(said)).abs().max())
