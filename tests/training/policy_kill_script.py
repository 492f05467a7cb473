"""Rewarded runs that are killed in the middle of a batch and gone on with. Not a test itself.

python -m tests.training.policy_kill_script FOLDER
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.tiny_models import byte_tokenizer
from tests.training.kill_script import UNBROKEN, in_a_process, killed_and_resumed, on_call
from tests.training.policy_runs import choices, dense, mixture, rewarded
from tests.training.tiny_runs import objective
from tutelage.core.run_log import RunFolder
from tutelage.objectives import RewardTemperature
from tutelage.objectives.policies import Gspo, Policy, PrGrpo
from tutelage.recipes.rewarded import routers_to_watch
from tutelage.recipes.rows import RolloutScribe
from tutelage.training import checkpoint, reuse, step

STEPS = (8, 9)
"""The checkpoints that are left at the end: the last one in the middle of a batch."""
POLICIES: dict[str, Policy] = {
    "mixture": PrGrpo(suppression=2.0, distill_weight=0.3, replay_routing=True),
    "dense": Gspo(clip_low=0.1, clip_high=0.1, distill="best"),
}


def run(folder: Path, *, resume: bool, kind: str) -> None:
    """Batches of four parts gone through twice; dropout; rewards and a teacher that they temper."""
    torch.set_num_threads(1)
    lm = mixture() if kind == "mixture" else dense(attention_dropout=0.2)
    made = rewarded(
        lm,
        policy=POLICIES[kind],
        teach=objective("forward_kl"),
        move=RewardTemperature(),
        watch_routers=routers_to_watch(lm),
        settings=choices(
            num_steps=STEPS[1],
            rows_per_step=4,
            updates_per_batch=3,
            epochs_per_batch=2,
            cut_batch_by="rows",
            micro_batch_tokens=32,
            weight_decay=0.1,
            save_every=2,
        ),
        hooks=[RolloutScribe(RunFolder(folder).rollouts, byte_tokenizer())],
        output=folder,
    )
    made.train(resume=resume)


SCENARIOS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": lambda: on_call(step.Stepper, "step", 1, before=False),
    "between micro-batches of a later part": lambda: on_call(
        step.Stepper, "_compare", 12, before=False
    ),
    "while the old student is read": lambda: on_call(step.Stepper, "read", 8, before=True),
    "when the batch is cut": lambda: on_call(reuse.Supply, "_begin", 2, before=False),
    "when the weights have moved in the middle of a batch": lambda: on_call(
        step.Stepper, "step", 5, before=False
    ),
    "after the weights are written": lambda: on_call(checkpoint, "save_tensors", 5, before=False),
    "before the checkpoint is renamed": lambda: on_call(
        checkpoint.Checkpoints, "_publish", 4, before=True
    ),
}


def main() -> None:
    folder = Path(sys.argv[1])
    for kind in POLICIES:
        train = partial(run, kind=kind)
        assert in_a_process(partial(train, folder / kind / UNBROKEN, resume=False)) == 0
        for name, arrange in SCENARIOS.items():
            killed_and_resumed(arrange, folder / kind / name, train)


if __name__ == "__main__":
    main()
