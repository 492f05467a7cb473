"""The loop: what is logged, told, evaluated and saved when, and how Ctrl-C ends it."""

import io
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.training.tiny_runs import losses, settings, student, trainer, watched, weights
from tutelage.core.errors import CheckpointError, ConfigError, MissingDependencyError, OutputError
from tutelage.core.run_log import TIME_FIELDS, read_metrics
from tutelage.objectives import Taid
from tutelage.training import Event, ProgressBar, StepDone, Stopping, TrainingResult
from tutelage.training.hooks import clock_face


def logged(folder: Path, phase: str = "train") -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [
        {name: value for name, value in line.items() if name not in TIME_FIELDS}
        for line in lines
        if line["phase"] == phase
    ]


def test_a_student_learns_its_teacher() -> None:
    found = losses(trainer(settings=settings(num_steps=30)))
    assert sum(found[-5:]) < 0.6 * sum(found[:5])


def test_a_few_lines_of_python_are_enough() -> None:
    result = trainer(settings=settings(num_steps=2)).train()
    assert isinstance(result, TrainingResult)
    assert result.step == 2
    assert result.checkpoint is None
    assert result.last is not None
    assert result.trained_tokens > 0
    assert not result.interrupted


def test_a_line_is_logged_for_each_step_with_all_its_numbers(tmp_path: Path) -> None:
    run = trainer(settings=settings(num_steps=3), output=tmp_path, move=Taid())
    run.train()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert set(lines[0]) == {
        "step", "phase", "seconds", "loss", "learning_rate", "grad_norm", "num_tokens",
        "tokens_per_second", "t",
    }  # fmt: skip
    assert [line["t"] for line in lines] == pytest.approx([0.4, 0.4, 0.6])
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(lines))


def test_hooks_hear_of_everything_in_order(tmp_path: Path) -> None:
    heard: list[str] = []
    trainer(
        settings=settings(num_steps=3, save_every=2, evaluate_every=2),
        output=tmp_path,
        evaluate=lambda: {"forward_kl": 1.0},
        hooks=[lambda event: heard.append(type(event).__name__)],
    ).train()
    assert heard == [
        "Started", "Evaluated", "Collected", "StepDone", "Collected", "StepDone",
        "Evaluated", "Saved", "Collected", "StepDone",
        "Evaluated", "Saved", "Ended",
    ]  # fmt: skip


def test_evaluation_comes_first_every_so_often_and_last(tmp_path: Path) -> None:
    count = iter(range(100))
    result = trainer(
        settings=settings(num_steps=5, evaluate_every=2),
        output=tmp_path,
        evaluate=lambda: {"forward_kl": float(next(count))},
    ).train()
    assert [line["step"] for line in logged(tmp_path, "eval")] == [0, 2, 4, 5]
    assert [found["forward_kl"] for found in result.evaluations] == [0, 1, 2, 3]


def test_evaluation_moves_nothing_whatever_it_does() -> None:
    def run(evaluate: Any) -> tuple[list[float], dict[str, torch.Tensor], list[float | None]]:
        lm = student(dropout=0.3)
        made = trainer(
            student=lm,
            settings=settings(num_steps=5, evaluate_every=1),
            move=Taid(schedule="adaptive", alpha=0.5),
            evaluate=evaluate,
        )
        found = watched(made, lambda r: (r.totals.loss, r.t))
        return [loss for loss, _ in found], weights(lm), [t for _, t in found]

    made: dict[str, Any] = {}

    def rude() -> dict[str, float]:
        torch.rand(100)
        torch.manual_seed(99)
        lm = made["lm"]
        lm.train()
        return {"loss": made["loss"](lm)}

    quiet = run(None)

    lm = student(dropout=0.3)
    other = trainer(
        student=lm,
        settings=settings(num_steps=5, evaluate_every=1),
        move=Taid(schedule="adaptive", alpha=0.5),
        evaluate=rude,
    )
    made["lm"] = lm
    from tests.training.tiny_runs import rows

    made["loss"] = lambda _: other.loss_on(rows(4))
    found = watched(other, lambda r: (r.totals.loss, r.t))

    assert [loss for loss, _ in found] == quiet[0]
    assert [t for _, t in found] == quiet[2]
    assert all(torch.equal(p, quiet[1][name]) for name, p in weights(lm).items())


def test_evaluation_sees_the_student_without_dropout_and_training_with_it() -> None:
    modes: list[bool] = []
    lm = student()

    def look() -> dict[str, float]:
        modes.append(lm.training)
        modes.append(torch.is_grad_enabled())
        return {}

    trainer(
        student=lm,
        settings=settings(num_steps=2, evaluate_every=1),
        evaluate=look,
        hooks=[lambda e: modes.append(lm.training) if isinstance(e, StepDone) else None],
    ).train()
    assert modes == [False, False, True, False, False, True, False, False]


@pytest.mark.parametrize("schedule", ["linear", "adaptive", "exponential"])
def test_the_clock_moves_once_a_step_however_the_step_is_cut(schedule: str) -> None:
    def times(budget: int) -> list[float | None]:
        chosen = settings(num_steps=6, micro_batch_tokens=budget)
        move = Taid(schedule=schedule, alpha=0.9, momentum=0.5)
        return watched(trainer(settings=chosen, move=move), lambda record: record.t)

    whole, cut = times(10**6), times(1)
    assert whole == pytest.approx(cut, abs=1e-6)
    assert whole[0] == 0.4
    assert whole[-1] is not None
    assert whole[-1] > 0.7


def interrupting(at: int, number: signal.Signals = signal.SIGINT) -> Any:
    def hook(event: Event) -> None:
        if isinstance(event, StepDone) and event.record.step == at:
            os.kill(os.getpid(), number)

    return hook


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    heard: list[Event] = []
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    chosen = settings(num_steps=6)
    stopped = trainer(
        settings=chosen, output=tmp_path, hooks=[interrupting(2, number), heard.append]
    ).train()

    assert stopped.interrupted
    assert stopped.step == 3
    assert stopped.checkpoint == tmp_path / "checkpoints" / "step-3"
    assert "Stopped after step 3 of 6" in stopped.advice
    assert "resume" in stopped.advice
    assert any(isinstance(event, Stopping) for event in heard)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers

    lm = student()
    result = trainer(student=lm, settings=chosen, output=tmp_path).train(resume=True)
    assert result.resumed_from == 3
    assert not result.interrupted
    unbroken = student()
    trainer(student=unbroken, settings=chosen, output=tmp_path / "unbroken").train()
    assert all(torch.equal(p, weights(unbroken)[name]) for name, p in weights(lm).items())
    assert logged(tmp_path) == logged(tmp_path / "unbroken")
    assert result.trained_tokens == sum(line["num_tokens"] for line in logged(tmp_path))


def test_a_second_ctrl_c_drops_the_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def twice(event: Event) -> None:
        if isinstance(event, StepDone) and event.record.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(settings=settings(save_every=2), output=tmp_path, hooks=[twice]).train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]


def test_ctrl_c_without_a_folder_says_that_nothing_was_saved() -> None:
    result = trainer(hooks=[interrupting(1)]).train()
    assert result.interrupted
    assert "Nothing was saved" in result.advice


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    def run() -> Any:
        return trainer(
            settings=settings(num_steps=3), output=tmp_path, evaluate=lambda: {"forward_kl": 0.0}
        )

    run().train()
    before = (tmp_path / "metrics.jsonl").read_text()
    again = run().train(resume=True)
    assert (again.step, again.last, again.evaluations) == (3, None, ())
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_resuming_where_nothing_was_saved_begins_at_the_beginning(tmp_path: Path) -> None:
    run = trainer(settings=settings(num_steps=2), output=tmp_path)
    line = '{"step": 1, "phase": "train", "seconds": 1, "loss": 2.0}'
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{line[:40]}")
    result = run.train(resume=True)
    assert result.resumed_from is None
    assert [line["step"] for line in logged(tmp_path)] == [1, 2]


def test_a_new_run_does_not_write_over_an_old_one(tmp_path: Path) -> None:
    trainer(settings=settings(num_steps=1), output=tmp_path).train()
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match="already holds step 1"):
        trainer(settings=settings(num_steps=1), output=tmp_path).train()
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": settings(num_steps=9)}, r"training\.num_steps is 9; it must be 2"),
        ({"move": Taid()}, r"move\.alpha is 0\.0005; it must be None"),
        ({"seed": 5}, "seed is 5; it must be 0"),
    ],
)
def test_going_on_with_other_settings_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    trainer(settings=settings(num_steps=2), output=tmp_path).train()
    fields = {"settings": settings(num_steps=2), **change}
    with pytest.raises(CheckpointError, match=message):
        trainer(output=tmp_path, **fields).train(resume=True)


def test_going_on_with_other_data_is_refused(tmp_path: Path) -> None:
    from tests.training.tiny_runs import rows

    trainer(settings=settings(num_steps=2), output=tmp_path).train()
    with pytest.raises(CheckpointError, match=r"rollouts\.shuffle|rollouts\.fingerprint"):
        trainer(data=rows(seed=9), settings=settings(num_steps=2), output=tmp_path).train(
            resume=True
        )


def test_a_folder_that_cannot_be_written_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="Choose another output folder"):
        trainer(output=blocked / "run").train()


def test_resuming_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="output is missing"):
        trainer().train(resume=True)


def test_a_tracker_that_is_not_installed_is_named_with_the_command() -> None:
    from tests.training.tiny_runs import objective, rows, teacher
    from tutelage.rollouts.dataset import DatasetRollouts
    from tutelage.training import Trainer

    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        Trainer(
            student=student(),
            teacher=teacher(),
            objective=objective(),
            rollouts=DatasetRollouts(rows()),
            settings=settings(track_with=("wandb",)),
        ).train()


class Average:
    """A running mean of weights: something else that moves."""

    def __init__(self) -> None:
        self.value = torch.zeros(3)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def test_more_that_moves_is_kept_by_name(tmp_path: Path) -> None:
    average = Average()
    average.value = torch.tensor([1.0, 2.0, 3.0])
    run = settings(num_steps=1)
    trainer(settings=run, output=tmp_path, parts={"average": average}).train()
    again = Average()
    trainer(settings=run, output=tmp_path, parts={"average": again}).train(resume=True)
    assert again.value.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(CheckpointError, match=r"parts is \[\]; it must be \['average'\]"):
        trainer(settings=run, output=tmp_path).train(resume=True)


def test_the_progress_bar_shows_loss_speed_and_time_left() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    trainer(
        settings=settings(num_steps=2),
        evaluate=lambda: {"forward_kl": 0.5},
        hooks=[ProgressBar(console), interrupting(1)],
    ).train()
    shown = text.getvalue()
    assert "forward_kl 0.5" in shown
    assert "tokens/s" in shown
    assert "left" in shown
    assert "Stopping after this step" in shown


def test_a_clock_face_reads_like_one() -> None:
    assert [clock_face(s) for s in (0.0, 59.6, 61.0, 3600.0, 36061.0)] == [
        "0:00", "1:00", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip
