"""Live teachers that are loaded one at a time teach what they teach together."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

import pytest
from typing_extensions import override

from tests.recipes.several.runs import (
    WAYS,
    cached,
    models_and_rows,
    recipe_of,
    several,
    trained,
)
from tutelage.core.errors import OutputError
from tutelage.models import CausalLM
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load, to_yaml
from tutelage.recipes.narrator import Advance, Narrator
from tutelage.recipes.outline import outline_of
from tutelage.recipes.run import evaluate_folder, run_recipe
from tutelage.teachers.cache import CacheFolder

CACHING = "Caching training rows"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_and_rows(tmp_path_factory.mktemp("several"))


@final
class Witness(Narrator):
    """Remembers the stages, and calls somebody as each begins."""

    def __init__(self, look: Callable[[list[str]], None] = lambda _: None) -> None:
        self.stages: list[str] = []
        self._look = look

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Advance]:
        self.stages.append(title)
        self._look(self.stages)
        yield lambda done, note="": None

    @override
    def say(self, text: str) -> None:
        pass


def at_once(folder: Path, name: str, how: str, *overrides: str) -> Recipe:
    return recipe_of(folder, name, several(folder, how), *overrides)


def in_turn(folder: Path, name: str, how: str, *overrides: str) -> Recipe:
    return at_once(folder, name, f"{how}, sequential: true", *overrides)


def rows_kept(run: Path) -> dict[str, list[int]]:
    return {
        one.name: [CacheFolder(one).store(part).num_rows for part in ("training", "held_out")]
        for one in sorted((run / "answers").iterdir())
    }


@pytest.mark.parametrize("how", WAYS)
def test_one_at_a_time_they_teach_the_same_to_the_bit(folder: Path, how: str) -> None:
    name = f"run-{WAYS.index(how)}"
    assert trained(in_turn(folder, f"{name}-turn", how)) == trained(
        at_once(folder, f"{name}-once", how)
    )
    own = [6, 2] if how == "by: row" else [12, 4]
    assert rows_kept(folder / f"{name}-turn") == {"1-one": own, "2-other": own}


def test_never_are_two_teachers_loaded(folder: Path) -> None:
    def alive() -> int:
        return sum(type(one) is CausalLM for one in gc.get_objects())

    def count(_: list[str]) -> None:
        most[0] = max(most[0], alive() - before)

    gc.collect()
    most, before = [0], alive()
    witness = Witness(count)
    run_recipe(in_turn(folder, "counted", "by: mixture"), narrator=witness)
    assert witness.stages.count(CACHING) == 2
    # The second teacher's rows, or the student's steps, find nobody else's weights.
    assert most == [1]


def killed_run(recipe: str) -> None:
    def kill(stages: list[str]) -> None:
        if stages.count(CACHING) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    run_recipe(load(recipe), narrator=Witness(kill))


def test_killed_between_two_teachers_a_run_goes_on_with_the_second(folder: Path) -> None:
    recipe = in_turn(folder, "killed", "by: mixture", "keep_checkpoints=true")
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    process = multiprocessing.get_context("spawn").Process(
        target=killed_run, args=(str(folder / "recipe.yaml"),)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "killed" / "recipe.yaml").exists()
    witness = Witness()
    ended = run_recipe(recipe, resume=True, narrator=witness)
    assert witness.stages.count(CACHING) == 1
    mine = (ended.student / "model.safetensors").read_bytes()
    assert mine == trained(at_once(folder, "killed-once", "by: mixture"))
    # Resumed once more, no teacher is loaded, whichever way they were loaded before.
    (folder / "killed" / "measured.json").unlink()
    again = Witness()
    assert run_recipe(recipe, resume=True, narrator=again).step == 4
    assert CACHING not in again.stages
    assert "Loading the teacher" not in again.stages
    (folder / "killed" / "measured.json").unlink()
    together = at_once(folder, "killed", "by: mixture", "keep_checkpoints=true")
    assert run_recipe(together, resume=True).step == 4


def test_answers_of_others_are_not_taken_for_theirs(folder: Path) -> None:
    recipe = in_turn(folder, "changed", "by: mixture")
    first = trained(recipe)
    # A byte of what is kept: it is found, and made anew.
    shard = folder / "changed" / "answers" / "1-one" / "training" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert trained_again(recipe, overwrite=False) == first
    other = recipe_of(
        folder, "changed", several(folder, "by: mixture, sequential: true",
                                   one=f"{{kind: live, model: {folder / 'one'}, dtype: float32}}")
    )  # fmt: skip
    with pytest.raises(OutputError, match=r"holds a cache of other answers: teacher\.dtype"):
        run_recipe(other, resume=True)
    assert trained_again(other, overwrite=True) == first


def trained_again(recipe: Recipe, *, overwrite: bool) -> bytes:
    ended = run_recipe(recipe, resume=not overwrite, overwrite=overwrite)
    return (ended.student / "model.safetensors").read_bytes()


def test_a_finished_run_is_measured_again_by_answers_that_pass(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_recipe(in_turn(folder, "measured", "by: mixture"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (row, *_) = evaluate_folder(ran.folder)["rows"]
    assert row["forward_kl"] == pytest.approx(ran.summary["rows"][1]["forward_kl"], rel=1e-6)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "one", "overrides", "complaint"),
    [
        ("by: mixture", None, ("rollouts.kind=student",), "teacher.sequential is true, which asks"),
        ("by: mixture", None, ("evaluation.written_rows=1",), "(teacher.sequential is true"),
        (
            "by: mixture",
            "remember_megabytes: 3",
            (),
            "one.remember_megabytes is 3, and teacher.seq",
        ),
    ],
)
def test_what_contradicts_it_is_said(
    folder: Path, how: str, one: str | None, overrides: tuple[str, ...], complaint: str
) -> None:
    own = None if one is None else f"{{kind: live, model: {folder / 'one'}, {one}}}"
    teacher = several(folder, f"{how}, sequential: true", one=own)
    (line,) = contradictions(recipe_of(folder, "never", teacher, *overrides))
    assert complaint in line


def test_caches_alone_are_not_loaded_in_turn(folder: Path) -> None:
    caches = {"one": cached(folder, "one"), "other": cached(folder, "other")}
    teacher = several(folder, "by: mixture, sequential: true", **caches)
    (line,) = contradictions(recipe_of(folder, "never", teacher))
    assert line.startswith("teacher.sequential is true, and none of teacher.teachers is live")


def test_show_tells_the_largest_of_them_and_not_their_sum(folder: Path) -> None:
    told = outline_of(in_turn(folder, "never", "by: mixture"))
    memory = told.memory_megabytes
    once = outline_of(at_once(folder, "never", "by: mixture")).memory_megabytes
    largest = memory["largest teacher, alone before the first step"]
    assert largest == max(once["teacher one"], once["teacher other"])
    assert "teacher one" not in memory
    assert memory["teacher one, its head, at most"] == 260 * 32 * 4 / 2**20
    assert "the live ones loaded one at a time" in dict(told.lines())["teacher"]
