"""Small rewarded runs: groups of completions, made-up rewards, students with or without routers."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen3MoeConfig

from tests.tiny_models import SIZES as MODEL_SIZES
from tests.tiny_models import build, tiny_llama
from tests.training.tiny_runs import SIZES, objective, rows, settings, teacher
from tutelage.core.records import Rollout, View
from tutelage.models import CausalLM
from tutelage.objectives import Objective
from tutelage.objectives.policies import Grpo, Policy
from tutelage.rewards import group_advantages
from tutelage.rollouts import DatasetRollouts, Order, StudentRollouts, Writing
from tutelage.rollouts.engines import Sampling
from tutelage.training import Groups, Ranks, Trainer, TrainingSettings

GROUP = 4
TEMPERATURE = 0.8
"""What completions are drawn at; not 1, so that whoever forgets it is found out."""


@dataclass
class Heard:
    """One forward pass of routers that compute a softmax over a linear map."""

    layers: list[tuple[Tensor, Tensor]]

    @property
    def probabilities(self) -> Sequence[Tensor]:
        return [p for p, _ in self.layers]

    @property
    def chosen(self) -> Sequence[Tensor]:
        return [c for _, c in self.layers]


class Listening:
    """A tap made of forward hooks, independent of the package's own."""

    def __init__(self, heard: Heard) -> None:
        self.heard = heard

    def of(self, view: View) -> Heard:
        assert all(len(p) == len(view.input_ids) for p in self.heard.probabilities)
        return self.heard


def routers_of(lm: CausalLM) -> Callable[[], Any]:
    gates = [m for n, m in lm.model.named_modules() if n.endswith("mlp.gate")]
    top_k = lm.config.num_experts_per_tok

    @contextmanager
    def watching(routes: Any = None) -> Generator[Listening]:
        assert routes is None
        heard = Heard([])

        def hook(gate: nn.Module, args: tuple[Tensor, ...], _: Any) -> None:
            hidden = args[0].detach().reshape(-1, args[0].shape[-1])
            p = (hidden @ gate.weight.detach().T).float().softmax(-1)
            heard.layers.append((p, p.topk(top_k).indices))

        handles = [gate.register_forward_hook(hook) for gate in gates]
        try:
            yield Listening(heard)
        finally:
            for handle in handles:
                handle.remove()

    return watching


def mixture(seed: int = 1) -> CausalLM:
    """Two layers of four experts, two of them active."""
    sizes = {**MODEL_SIZES, **SIZES, "moe_intermediate_size": 24}
    config = Qwen3MoeConfig(
        **sizes, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1
    )
    return CausalLM(build(config, seed=seed))


def dense(*, dtype: torch.dtype = torch.float32, **overrides: Any) -> CausalLM:
    return CausalLM(tiny_llama(1, **{**SIZES, **overrides}).to(dtype))


def reward_of(row: Rollout) -> float:
    """Made up, the same for the same completion: even tokens are liked."""
    return sum(token % 2 == 0 for token in row.completion_ids) / len(row.completion_ids)


def judge(found: Sequence[Rollout], *, group: int = GROUP) -> list[Rollout]:
    rewards = torch.tensor([reward_of(row) for row in found], dtype=torch.float64)
    advantages = group_advantages(rewards, torch.arange(len(found)) // group, deviation="sample")
    return [
        replace(row, reward=reward, advantage=advantage)
        for row, reward, advantage in zip(found, rewards.tolist(), advantages.tolist(), strict=True)
    ]


def written(lm: CausalLM, num_rows: int = 8, *, seed: int = 5) -> list[Rollout]:
    """Judged completions in groups, by this student."""
    return judge(source(lm, seed=seed).take(num_rows))


def source(lm: CausalLM, *, seed: int = 5, ranks: Ranks | None = None) -> StudentRollouts:
    ranks = ranks or Ranks()
    order = Order(seed=seed, rank=ranks.rank, num_ranks=ranks.num_ranks)
    # Every eighth token ends a completion, so that they end at many lengths.
    lm.model.generation_config = GenerationConfig(eos_token_id=list(range(0, 64, 8)))
    writing = Writing(
        sampling=Sampling(max_completion_tokens=10, batch_rows=4, temperature=TEMPERATURE),
        completions_per_prompt=GROUP,
    )
    return StudentRollouts(lm, [row.prompt for row in rows(20)], writing, order)


def choices(**overrides: Any) -> TrainingSettings:
    """Settings with a word on the reduction, which every policy asks for."""
    return settings(**{"reduction": "sequence_mean", "rows_per_step": 8, **overrides})


def rewarded(
    lm: CausalLM | None = None,
    *,
    policy: Policy | None = None,
    teach: Objective | None = None,
    given: Sequence[Rollout] | None = None,
    **fields: Any,
) -> Trainer:
    """A run on the student's own completions, or on these; by rewards alone without `teach`."""
    lm, ranks = lm or dense(), fields.pop("ranks", None) or Ranks()
    return Trainer(
        student=lm,
        teacher=None if teach is None else fields.pop("teacher", None) or teacher(),
        objective=teach or objective("policy_gradient", temperature=TEMPERATURE),
        rollouts=source(lm, ranks=ranks)
        if given is None
        else DatasetRollouts(given, shuffle=False),
        judge=judge if given is None else None,
        policy=policy or Grpo(),
        groups=Groups(size=GROUP),
        sampled_at=TEMPERATURE,
        ranks=ranks,
        **{"settings": choices(), **fields},
    )
