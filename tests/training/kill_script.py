"""Runs that are killed (by SIGKILL, at chosen places) and gone on with. Not a test itself.

python -m tests.training.kill_script FOLDER          every scenario, each run a process
python -m tests.training.kill_script FOLDER --once   one run in FOLDER, resumed if it can be
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.training.routers.routed_runs import BALANCED, WARM_UP, routed
from tests.training.tiny_runs import objective, rows, settings, student, trainer
from tutelage.core import run_log
from tutelage.models import add_lora
from tutelage.objectives import Taid
from tutelage.rollouts.dataset import DatasetRollouts
from tutelage.teachers import AverageTeacher
from tutelage.training import RouterOwner, checkpoint, step

UNBROKEN = "unbroken"
AVERAGED = "with an averaged teacher"
"""A run of another kind: an adapter whose running average teaches it."""
AVERAGED_UNBROKEN = "with an averaged teacher, unbroken"
ROUTED = ("balanced", "warm-up")
"""Runs whose student is a mixture of experts: with biases, and with experts drawn at random."""
ROUTED_DEATHS = {"before its biases move": True, "after its biases moved": False}
"""Between the optimizer's step and the biases' own, and right behind it."""


def run(folder: Path, *, resume: bool) -> None:
    """Adaptive TAID, several micro-batches a step, shuffled rows, dropout, evaluation."""
    torch.set_num_threads(1)
    lm = student(dropout=0.2)
    made = trainer(
        student=lm,
        objective=objective("forward_kl"),
        move=Taid(schedule="adaptive", alpha=0.5, momentum=0.5),
        settings=settings(
            num_steps=9,
            rows_per_step=10,
            micro_batch_tokens=48,
            warmup_steps=2,
            weight_decay=0.1,
            save_every=2,
            evaluate_every=3,
        ),
        evaluate=lambda: {
            "first weight": float(lm.head.weight[0, 0]),
            "drawn": float(torch.rand(())),
        },
        output=folder,
    )
    made.train(resume=resume)


def run_averaged(folder: Path, *, resume: bool) -> None:
    """An adapter with dropout, TAID towards its own running average, several micro-batches."""
    torch.set_num_threads(1)
    lm = student()
    add_lora(lm, rank=4, alpha=8.0, dropout=0.2, targets=None, seed=1)
    teacher = AverageTeacher(lm, decay=0.8)
    data = [
        replace(row, prompt=replace(row.prompt, teacher_ids=(5, 6, *row.prompt.student_ids)))
        for row in rows()
    ]
    made = trainer(
        student=lm,
        teacher=teacher,
        clocks={"teacher": teacher},
        move=Taid(schedule="adaptive", alpha=0.5, momentum=0.5),
        rollouts=DatasetRollouts(data, seed=3),
        settings=settings(num_steps=9, rows_per_step=10, micro_batch_tokens=48, save_every=2),
        output=folder,
    )
    made.train(resume=resume)


def run_routed(folder: Path, *, resume: bool) -> None:
    """A mixture of experts, several micro-batches a step, advantages, a probe every other step."""
    torch.set_num_threads(1)
    kind = next(name for name in ROUTED if folder.name.startswith(name))
    made, _ = routed(
        BALANCED if kind == "balanced" else WARM_UP,
        probe_every=2,
        settings=settings(num_steps=9, rows_per_step=10, micro_batch_tokens=48, save_every=2),
        output=folder,
    )
    made.train(resume=resume)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner: Any, name: str, number: int, *, before: bool) -> None:
    """Be killed around one call of a function."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1, 10**6))

    def counted(*args: Any, **options: Any) -> Any:
        due = next(calls) == number
        if due and before:
            die()
        result = original(*args, **options)
        if due:
            die()
        return result

    setattr(owner, name, counted)


def torn_line(number: int) -> None:
    """Be killed with half a line of the log on disk."""
    original = run_log.RunLog.write
    calls = iter(range(1, 10**6))

    def half(self: Any, **line: Any) -> None:
        if next(calls) == number:
            self._file.write('{"step": 5, "phase": "tr')
            self._file.flush()
            die()
        original(self, **line)

    run_log.RunLog.write = half


SCENARIOS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": lambda: on_call(step.Stepper, "_compare", 4, before=False),
    "between micro-batches": lambda: on_call(step.Stepper, "_compare", 14, before=False),
    "between backward and the optimizer": lambda: on_call(step.Stepper, "_totals", 6, before=True),
    "after the weights have moved": lambda: on_call(step.Stepper, "step", 6, before=False),
    "in the middle of a log line": lambda: torn_line(7),
    "after the weights are written": lambda: on_call(checkpoint, "save_tensors", 2, before=False),
    "before the checkpoint is renamed": lambda: on_call(
        checkpoint.Checkpoints, "_publish", 3, before=True
    ),
    "after the rename, before the old one goes": lambda: on_call(
        checkpoint.Checkpoints, "_publish", 3, before=False
    ),
    "while an old checkpoint is deleted": lambda: on_call(
        checkpoint.shutil, "rmtree", 1, before=True
    ),
    "at the very end": lambda: on_call(checkpoint.Keeper, "save", 5, before=True),
}


def in_a_process(action: Callable[[], None]) -> int:
    """Do it in a forked process; answers its exit status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def killed_and_resumed(
    arrange: Callable[[], None], folder: Path, train: Callable[..., None] = run
) -> None:
    def doomed() -> None:
        arrange()
        train(folder, resume=False)

    status = in_a_process(doomed)
    assert os.WIFSIGNALED(status), f"{folder.name}: was not killed ({status})"
    (folder / "killed").write_text("by signal " + str(os.WTERMSIG(status)))
    assert in_a_process(lambda: train(folder, resume=True)) == 0, f"{folder.name}: did not go on"


def main() -> None:
    folder = Path(sys.argv[1])
    if "--once" in sys.argv:
        run(folder, resume=True)
        return
    # This process only forks: it computes nothing itself, so its children start clean.
    assert in_a_process(lambda: run(folder / UNBROKEN, resume=False)) == 0
    for name, arrange in SCENARIOS.items():
        killed_and_resumed(arrange, folder / name)
    assert in_a_process(lambda: run_averaged(folder / AVERAGED_UNBROKEN, resume=False)) == 0

    def between_student_and_average() -> None:
        on_call(AverageTeacher, "move", 6, before=True)

    killed_and_resumed(between_student_and_average, folder / AVERAGED, run_averaged)
    for kind in ROUTED:
        whole = folder / f"{kind}, unbroken"
        assert in_a_process(lambda whole=whole: run_routed(whole, resume=False)) == 0
        for name, before in ROUTED_DEATHS.items():

            def around_the_biases(before: bool = before) -> None:  # noqa: FBT001 - bound early
                on_call(RouterOwner, "move", 6, before=before)

            killed_and_resumed(around_the_biases, folder / f"{kind}, killed {name}", run_routed)


if __name__ == "__main__":
    main()
