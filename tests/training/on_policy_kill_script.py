"""On-policy runs that are killed at chosen places and gone on with. Not a test itself.

python -m tests.training.on_policy_kill_script FOLDER
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from tests.tiny_models import byte_tokenizer
from tests.training.kill_script import (
    UNBROKEN,
    die,
    in_a_process,
    killed_and_resumed,
    on_call,
)
from tests.training.tiny_runs import objective, on_policy, rows, settings, student, trainer
from tutelage.core.run_log import RunFolder, RunLog
from tutelage.models import CausalLM, add_lora
from tutelage.objectives import Taid
from tutelage.recipes.rows import RolloutScribe
from tutelage.rollouts import Order, StudentRollouts, Writing
from tutelage.rollouts.engines import Sampling, slots
from tutelage.teachers import AverageTeacher
from tutelage.training import checkpoint, collect, step

TAUGHT = "self-taught"
STEPS = (6, 7)
"""The checkpoints that are left at the end."""


def run(folder: Path, *, resume: bool, kind: str) -> None:
    """Adaptive TAID, several micro-batches a step, dropout, and shares or teachers that move."""
    torch.set_num_threads(1)
    lm = student(dropout=0.0 if kind == TAUGHT else 0.2)
    taught = self_taught(lm) if kind == TAUGHT else {"rollouts": on_policy(kind, lm)}
    made = trainer(
        student=lm,
        objective=objective("forward_kl"),
        **taught,
        move=Taid(schedule="adaptive", alpha=0.5, momentum=0.5),
        settings=settings(
            num_steps=STEPS[1],
            rows_per_step=8,
            micro_batch_tokens=48,
            weight_decay=0.1,
            save_every=2,
            evaluate_every=3,
        ),
        evaluate=lambda: {"first weight": float(lm.head.weight[0, 0])},
        hooks=[RolloutScribe(RunFolder(folder).rollouts, byte_tokenizer())],
        output=folder,
    )
    made.train(resume=resume)


def self_taught(lm: CausalLM) -> dict[str, Any]:
    """An adapter that writes, and whose running average reads more than it did."""
    add_lora(lm, rank=4, alpha=8.0, dropout=0.2, targets=None, seed=1)
    lm.model.generation_config = GenerationConfig(eos_token_id=list(range(0, 64, 8)))
    teacher = AverageTeacher(lm, decay=0.8)
    prompts = [replace(row.prompt, teacher_ids=(5, 6, *row.prompt.student_ids)) for row in rows(20)]
    writing = Writing(sampling=Sampling(max_completion_tokens=10, batch_rows=3))
    return {
        "teacher": teacher,
        "clocks": {"teacher": teacher},
        "rollouts": StudentRollouts(lm, prompts, writing, Order(seed=5)),
    }


def torn_rollout(number: int) -> None:
    """Be killed with half a line of rollouts.jsonl on disk."""
    original = RunLog.add
    calls = iter(range(1, 10**6))

    def half(self, at, line) -> None:
        if self._path.name == "rollouts.jsonl" and next(calls) == number:
            self._file.write('{"step": 5, "row": "rows')
            self._file.flush()
            die()
        original(self, at, line)

    RunLog.add = half


WRITING: dict[str, Callable[[], None]] = {
    "between two tokens of a rollout": lambda: on_call(slots, "draw_by_blocks", 50, before=True),
    "when the rollouts are there": lambda: on_call(collect.Collector, "gather", 6, before=False),
    "in the middle of a line of rollouts": lambda: torn_rollout(9),
    "between micro-batches": lambda: on_call(step.Stepper, "_compare", 14, before=False),
    "when the weights have moved but no clock has": lambda: on_call(
        step.Stepper, "step", 4, before=False
    ),
    "after the weights are written": lambda: on_call(checkpoint, "save_tensors", 2, before=False),
    "before the checkpoint is renamed": lambda: on_call(
        checkpoint.Checkpoints, "_publish", 3, before=True
    ),
}
MOVING: dict[str, Callable[[], None]] = {
    "between the student and its average": lambda: on_call(AverageTeacher, "move", 4, before=True),
}
SCENARIOS: dict[str, dict[str, Callable[[], None]]] = {
    "mixed": WRITING,
    "replay": {
        name: WRITING[name]
        for name in ("between two tokens of a rollout", "before the checkpoint is renamed")
    },
    TAUGHT: MOVING
    | {
        name: WRITING[name]
        for name in (
            "between two tokens of a rollout",
            "between micro-batches",
            "before the checkpoint is renamed",
        )
    },
}


def main() -> None:
    folder = Path(sys.argv[1])
    for kind, scenarios in SCENARIOS.items():
        train = partial(run, kind=kind)
        whole = folder / kind / UNBROKEN
        assert in_a_process(partial(train, whole, resume=False)) == 0
        for name, arrange in scenarios.items():
            killed_and_resumed(arrange, folder / kind / name, train)


if __name__ == "__main__":
    main()
