"""Small runs whose student is a mixture of experts and whose rows have advantages."""

from dataclasses import replace
from typing import Any

import torch

from tests.tiny_moe import tiny_moe
from tests.training.tiny_runs import SIZES, rows, settings, trainer
from tutelage.core.records import Rollout
from tutelage.models import CausalLM
from tutelage.text.collate import collate
from tutelage.training import Ranks, RouterOwner, RoutingSettings, Trainer
from tutelage.training.routers.probe import Probe

SHARES = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
BALANCED: dict[str, Any] = {
    "balance": {"kind": "reward_bias", "balance_rate": 0.1, "reward_rate": 0.05}
}
WARM_UP: dict[str, Any] = {"mode": "uniform_sample", "targets": {}}


def judged_rows(num_rows: int = 24) -> list[Rollout]:
    """Some rows have an advantage, in groups of two; the others have none."""
    return [
        row if at % 4 == 3 else replace(row, advantage=(-1.0) ** at * (1 + at % 3))
        for at, row in enumerate(rows(num_rows))
    ]


def student(**overrides: Any) -> CausalLM:
    return tiny_moe(**{**SIZES, **overrides})


def routed(
    routing: dict[str, Any],
    lm: CausalLM | None = None,
    *,
    data: list[Rollout] | None = None,
    ranks: Ranks | None = None,
    probe_every: int = 1,
    **fields: Any,
) -> tuple[Trainer, RouterOwner]:
    """A trainer and who owns its student's routers; the shift is measured every so often."""
    lm, data = lm or student(), data or judged_rows()
    chosen = RoutingSettings(**routing)
    owner = RouterOwner(
        lm,
        chosen,
        seed=3,
        targets=None if chosen.targets is None else SHARES,
        probe=Probe(lm, collate(data[:3], device="cpu").student, every=probe_every),
    )
    given = {"settings": settings(num_steps=3, micro_batch_tokens=48), **fields}
    made = trainer(student=lm, data=data, ranks=ranks, routers=owner, **given)
    return made, owner
