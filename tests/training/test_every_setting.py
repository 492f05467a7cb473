"""Every training setting changes something that can be observed; none is silently ignored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny_runs import on_policy, settings, student, trainer, watched, weights
from tutelage.core.run_log import read_metrics
from tutelage.training import Groups, Ranks, TrainingSettings
from tutelage.training.losses import module as loss_module


def trajectory(folder: Path, chosen: TrainingSettings) -> Any:
    """Each step's numbers and the weights at the end."""
    lm = student()
    run = trainer(student=lm, settings=chosen)
    found = watched(run, lambda r: (r.totals.loss, r.learning_rate, r.totals.num_tokens))
    return found, {name: w.tolist() for name, w in weights(lm).items()}


def evaluations(folder: Path, chosen: TrainingSettings) -> Any:
    trainer(settings=chosen, output=folder, evaluate=lambda: {"forward_kl": 0.0}).train()
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl", phase="eval")]


def checkpoints(folder: Path, chosen: TrainingSettings) -> Any:
    trainer(settings=chosen, output=folder).train()
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def forward_passes(folder: Path, chosen: TrainingSettings) -> Any:
    lm = student()
    calls: list[int] = []
    lm.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer(student=lm, settings=chosen).train()
    return len(calls)


def loss_options(folder: Path, chosen: TrainingSettings) -> Any:
    """What the fused loss was asked for, if it was called."""
    asked: list[Any] = []
    original = loss_module.fused_loss

    def spy(*args: Any, **named: Any) -> Any:
        asked.append(named["options"])
        return original(*args, **named)

    loss_module.fused_loss = spy
    try:
        trainer(settings=chosen).train()
    finally:
        loss_module.fused_loss = original
    return [(o.logits, o.memory_bytes, o.matmul_dtype) for o in asked]


def names_logged(folder: Path, chosen: TrainingSettings) -> Any:
    """What the log says of rows that the student has written."""
    rows = on_policy("student", student()).take(8)
    return watched(trainer(data=rows, settings=chosen), lambda r: sorted(r.numbers()))


def cut_up(folder: Path, chosen: TrainingSettings) -> Any:
    """Which rows of groups of four each step of a batch got."""
    lm = student()
    run = trainer(
        student=lm,
        settings=chosen.model_copy(update={"updates_per_batch": 4}),
        groups=Groups(size=4),
    )
    return watched(run, lambda r: r.totals.loss)


CHANGES: dict[str, tuple[Any, Callable[[Path, TrainingSettings], Any]]] = {
    "weighting": ({"position_slope": 0.5}, trajectory),
    "num_steps": (4, trajectory),
    "rows_per_step": (4, trajectory),
    "tokens_per_step": (30, trajectory),
    "updates_per_batch": (2, trajectory),
    "epochs_per_batch": (2, trajectory),
    "cut_batch_by": ("rows", cut_up),
    "micro_batch_tokens": (20, forward_passes),
    "learning_rate": (1e-3, trajectory),
    "learning_rate_factors": ({"model.embed_tokens.*": 0.1}, trajectory),
    "schedule": ("linear", trajectory),
    "warmup_steps": (2, trajectory),
    "final_learning_rate_share": (0.5, trajectory),
    "weight_decay": (0.1, trajectory),
    "betas": ((0.5, 0.9), trajectory),
    "epsilon": (1e-2, trajectory),
    "max_grad_norm": (0.1, trajectory),
    "reduction": ("sequence_mean", trajectory),
    "precision": ("bf16", trajectory),
    "gradient_checkpointing": (True, forward_passes),
    "fused": (False, loss_options),
    "loss_logits": ("native", loss_options),
    "loss_megabytes": (1, loss_options),
    "measure_drift": (True, names_logged),
    "evaluate_first": (False, evaluations),
    "evaluate_every": (1, evaluations),
    "save_every": (1, checkpoints),
    "keep_checkpoints": (1, checkpoints),
}
"""Another value than the tests' own, and where the difference must show."""


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changes_something(tmp_path: Path, name: str) -> None:
    value, look = CHANGES[name]
    plain: dict[str, Any] = {"num_steps": 3}
    if name == "keep_checkpoints":
        plain["save_every"] = 1
    changed = settings(**{**plain, name: value})
    assert look(tmp_path / "plain", settings(**plain)) != look(tmp_path / "changed", changed)


def test_no_setting_is_left_out_of_these_tests() -> None:
    trackers = {"track_with", "track_as"}
    assert set(CHANGES) | trackers == set(TrainingSettings.model_fields)


def test_trackers_get_the_settings_and_every_number() -> None:
    from accelerate import tracking

    calls: list[tuple[str, Any]] = []

    class Recorder(tracking.GeneralTracker):
        """Accelerate's own interface, kept in memory."""

        name = "recorder"
        requires_logging_directory = False

        def __init__(self) -> None:
            super().__init__()

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            calls.append(("settings", values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            calls.append((f"step {step}", values))

        def finish(self) -> None:
            calls.append(("finish", None))

    ranks = Ranks()
    ranks._accelerator.log_with = [Recorder()]
    trainer(
        ranks=ranks, settings=settings(num_steps=2), evaluate=lambda: {"forward_kl": 0.5}
    ).train()
    assert calls[0][0] == "settings"
    assert calls[0][1]["training.learning_rate"] == 3e-3
    assert calls[1] == ("step 0", {"eval/forward_kl": 0.5})
    assert [name for name, _ in calls] == [
        "settings", "step 0", "step 1", "step 2", "step 2", "finish",
    ]  # fmt: skip
    assert "train/loss" in calls[2][1]


def test_the_seed_changes_the_dropout_and_nothing_else() -> None:
    def run(seed: int, dropout: float) -> list[float]:
        made = trainer(seed=seed, student=student(dropout=dropout), settings=settings(num_steps=2))
        return watched(made, lambda record: record.totals.loss)

    assert run(0, 0.3) == run(0, 0.3)
    assert run(0, 0.3) != run(1, 0.3)
    assert run(0, 0.0) == run(1, 0.0)
