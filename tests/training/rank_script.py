"""What each process of a two-rank run does; the test starts it twice. Not a test itself."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.training.crossed.crossed_runs import crossed
from tests.training.crossed.crossed_runs import student as reader
from tests.training.policy_runs import choices, rewarded
from tests.training.routers.routed_runs import BALANCED, routed
from tests.training.routers.routed_runs import student as experts
from tests.training.tiny_runs import (
    objective,
    on_policy,
    rows,
    settings,
    student,
    trainer,
    watched,
    weights,
)
from tutelage.core.errors import TutelageError
from tutelage.core.records import Rollout
from tutelage.models.routers import biases_of
from tutelage.objectives import RewardTemperature, Taid
from tutelage.objectives.policies import Grpo
from tutelage.training import Ranks

ADAPTIVE = Taid(schedule="adaptive", alpha=0.9, momentum=0.5)


def uneven() -> list[Rollout]:
    """Rows of which one rank's half is untrained and the other's is not."""
    made = rows(16, seed=4)
    return [
        replace(row, trained=(False,) * len(row.completion_ids)) if index % 8 < 4 else row
        for index, row in enumerate(made)
    ]


RUNS: dict[str, dict[str, Any]] = {
    "plain": {"settings": settings(num_steps=3)},
    "ragged": {"settings": settings(num_steps=3, micro_batch_tokens=24, reduction="sequence_mean")},
    "moved": {"settings": settings(num_steps=5, micro_batch_tokens=24), "move": ADAPTIVE},
    "uneven": {"settings": settings(num_steps=3, micro_batch_tokens=24), "data": uneven()},
    "on_policy": {
        "settings": settings(num_steps=4, micro_batch_tokens=24),
        "move": ADAPTIVE,
        "writes": "mixed",
    },
    "routed": {
        "settings": settings(num_steps=3, micro_batch_tokens=24),
        "routing": BALANCED,
    },
    "two_tokenizers": {
        "settings": settings(num_steps=3, micro_batch_tokens=60),
        "crossed": "aligned_kl",
    },
    "two_spaces": {
        "settings": settings(num_steps=3, micro_batch_tokens=60),
        "crossed": "dual_space",
    },
    "policy": {
        "settings": choices(num_steps=4, micro_batch_tokens=24, epochs_per_batch=2),
        "policy": Grpo(distill="best"),
        "teach": objective("forward_kl"),
        "move": RewardTemperature(),
    },
}
"""Named runs that must not depend on the number of ranks."""


def run(name: str, ranks: Ranks, output: Path | None = None) -> dict[str, Any]:
    """Train, and say how it went: weights, losses, times."""
    fields = {**RUNS[name], "output": output}
    if "routing" in fields:
        lm = experts()
        made, owner = routed(fields.pop("routing"), lm, ranks=ranks, **fields)
        went = watched(made, lambda r: [r.totals.loss, *r.totals.routers.values()])
        biases = biases_of(lm)
        assert biases is not None
        state = {"bias": biases, "average": owner.state_dict()["average"]}
        return {"steps": went, "weights": {**weights(lm), **state}}
    if "crossed" in fields:
        kind = fields.pop("crossed")
        lm = reader(kind)
        made = crossed(kind, ranks=ranks, student=lm, **fields)
        found = watched(made, lambda r: (r.totals.loss, *r.totals.measures.values()))
        return {"steps": found, "weights": weights(lm)}
    lm = student()
    fields["student"] = lm
    if "writes" in fields:
        fields["rollouts"] = on_policy(fields.pop("writes"), lm, ranks)
    if "policy" in fields:
        made = rewarded(fields.pop("student"), ranks=ranks, **fields)
        # Each batch's second step has ratios of its own, and all their numbers are over all ranks.
        measured = watched(made, lambda r: (r.totals.loss, *r.totals.measures.values()))
        return {"steps": measured, "weights": weights(lm)}
    found = watched(
        trainer(ranks=ranks, **fields),
        lambda r: (r.totals.loss, r.totals.grad_norm, r.totals.num_tokens, r.t or 0.0),
    )
    return {"steps": found, "weights": weights(lm)}


def complaint(ranks: Ranks, **fields: Any) -> str:
    """What a run that must fail says."""
    try:
        trainer(ranks=ranks, **fields).train()
    except TutelageError as error:
        return str(error)
    return "no error"


def broken(ranks: Ranks) -> str:
    """One rank's forward pass gives nan: both must stop."""
    lm = student()
    lm.model.model.norm.register_forward_hook(
        lambda _module, _inputs, out: out * torch.nan if ranks.rank == 1 else out
    )
    return complaint(ranks, student=lm, settings=settings(num_steps=2))


def resumed(ranks: Ranks, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The weights of a run with dropout, unbroken, and gone on with from its middle."""
    fields: dict[str, Any] = {
        "settings": settings(num_steps=6, save_every=3, micro_batch_tokens=24),
        "move": ADAPTIVE,
    }
    unbroken, again = student(dropout=0.2), student(dropout=0.2)
    trainer(ranks=ranks, student=unbroken, output=folder / "unbroken", **fields).train()

    def copy_middle() -> None:
        middle = Path("checkpoints") / "step-3"
        shutil.copytree(folder / "unbroken" / middle, folder / "again" / middle)

    ranks.together_on_main(copy_middle)
    trainer(ranks=ranks, student=again, output=folder / "again", **fields).train(resume=True)
    return [weights(unbroken), weights(again)]


def dropout_masks(ranks: Ranks) -> list[float]:
    """The first number each rank draws in a run: they must differ."""
    ranks.seed(0)
    mine = torch.zeros(ranks.num_ranks)
    mine[ranks.rank] = torch.rand(())
    return ranks.total(mine).tolist()


def main(folder: Path) -> None:
    """Everything, into files that the test reads."""
    ranks = Ranks()
    found: dict[str, Any] = {"num_ranks": ranks.num_ranks}
    for name in RUNS:
        went = run(name, ranks)
        found[name] = went["steps"]
        save_file(went["weights"], folder / f"{name}-{ranks.rank}.safetensors")
    found["dropout"] = dropout_masks(ranks)
    unbroken, again = resumed(ranks, folder)
    found["resumed equal"] = all(torch.equal(w, again[name]) for name, w in unbroken.items())
    save_file(again, folder / f"resumed-{ranks.rank}.safetensors")
    found["broken"] = broken(ranks)
    found["odd"] = complaint(ranks, settings=settings(rows_per_step=9))
    (folder / f"found-{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
