"""Ctrl-C in the run itself and in a baseline, and runs that are begun again."""

import json
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest
from typing_extensions import override

from tests.cli.conftest import FAST
from tutelage.core.errors import OutputError
from tutelage.recipes.compare import Plan, compare_recipes
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.narrator import Advance, Narrator
from tutelage.recipes.run import run_recipe

ITSELF, BASELINE = "Training", "Training: cross_entropy"


@final
class ControlC(Narrator):
    """Presses Ctrl-C when a stage has come so far; the next step is finished before it counts."""

    def __init__(self, title: str, *, at: int) -> None:
        self._title = title
        self._at = at

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Advance]:
        def advance(done: int, note: str = "") -> None:
            if (title, done) == (self._title, self._at):
                signal.raise_signal(signal.SIGINT)

        yield advance

    @override
    def say(self, text: str) -> None:
        pass


def tiny(folder: Path, *overrides: str) -> Recipe:
    return load("tiny", [*FAST, f"output={folder}", *overrides])


def rows_of(summary: Any) -> list[str]:
    return [row["name"] for row in summary["rows"]]


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def weights(folder: Path) -> bytes:
    return (folder / "student" / "model.safetensors").read_bytes()


def test_an_interrupted_run_has_no_results_and_ends_as_if_it_had_never_stopped(
    tmp_path: Path,
) -> None:
    recipe, whole = tiny(tmp_path / "broken"), run_recipe(tiny(tmp_path / "whole"))
    stopped = run_recipe(recipe, narrator=ControlC(ITSELF, at=2))
    assert stopped.interrupted
    assert stopped.step == 3
    assert (stopped.student / "model.safetensors").is_file()
    assert rows_of(stopped.summary) == ["before", "teacher"]
    assert not (stopped.folder / "summary.json").exists()
    assert not (stopped.folder / "baselines").exists()
    ended = run_recipe(recipe, resume=True)
    assert rows_of(ended.summary) == ["before", "cross_entropy", "distilled", "teacher"]
    assert steps_of(ended.folder) == [0, 1, 2, 3, 4, 4]
    assert weights(ended.folder) == weights(whole.folder)


def test_an_interrupted_baseline_goes_on_by_itself(tmp_path: Path) -> None:
    recipe, whole = tiny(tmp_path / "broken"), run_recipe(tiny(tmp_path / "whole"))
    stopped = run_recipe(recipe, narrator=ControlC(BASELINE, at=2))
    assert stopped.interrupted
    assert rows_of(stopped.summary) == ["before", "distilled", "teacher"]
    log = stopped.folder / "metrics.jsonl"
    written = log.stat().st_mtime_ns
    ended = run_recipe(recipe, resume=True)
    assert not ended.interrupted
    assert rows_of(ended.summary) == ["before", "cross_entropy", "distilled", "teacher"]
    assert log.stat().st_mtime_ns == written
    inner = Path("baselines", "cross_entropy")
    assert steps_of(ended.folder / inner) == [0, 1, 2, 3, 4, 4]
    assert weights(ended.folder / inner) == weights(whole.folder / inner)


def test_what_was_written_of_a_model_is_replaced_when_a_run_goes_on(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "run", "baselines={}")
    run_recipe(recipe, narrator=ControlC(ITSELF, at=1))
    done = tmp_path / "run" / "measured.json"
    done.unlink()
    run_recipe(recipe, resume=True)
    lines = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["when"] for line in lines) == ["after", "before", "teacher"]


def test_overwriting_trains_the_run_and_its_baselines_anew(tmp_path: Path) -> None:
    run_recipe(tiny(tmp_path / "run", "keep_checkpoints=true"))
    shorter = tiny(tmp_path / "run", "training.num_steps=2")
    with pytest.raises(OutputError, match="already holds a run"):
        run_recipe(shorter)
    again = run_recipe(shorter, overwrite=True)
    assert steps_of(again.folder) == [0, 1, 2, 2]
    assert steps_of(again.folder / "baselines" / "cross_entropy") == [0, 1, 2, 2]
    tokens = {row["name"]: row.get("trained_tokens") for row in again.summary["rows"]}
    assert tokens["distilled"] == tokens["cross_entropy"]
    without = run_recipe(tiny(tmp_path / "run", "baselines={}"), overwrite=True)
    assert not (without.folder / "baselines").exists()


def test_checkpoints_of_a_finished_run_stay_only_where_asked(tmp_path: Path) -> None:
    for keep in (True, False):
        recipe = tiny(tmp_path / f"{keep}", "baselines={}", f"keep_checkpoints={str(keep).lower()}")
        assert (run_recipe(recipe).folder / "checkpoints").exists() is keep


def test_an_interrupted_comparison_stops_and_goes_on(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "unused", "name=one", "baselines={}")
    plan = Plan.of([recipe], num_seeds=1)
    with pytest.raises(KeyboardInterrupt):
        compare_recipes(plan, tmp_path / "out", narrator=ControlC(ITSELF, at=2))
    comparison, _ = compare_recipes(plan, tmp_path / "out")
    assert len(comparison.variants[0].runs) == 1
    assert steps_of(tmp_path / "out" / "runs" / "one" / "seed-0") == [0, 1, 2, 3, 4, 4]
