"""SIGKILL for a run that vLLM writes for, and for the vLLM that writes for a run."""

import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest
from typing_extensions import override

from tests.tiny_models import byte_tokenizer
from tests.vllm.conftest import (
    ROOT,
    Server,
    await_answers,
    free_port,
    killed,
    started,
    stopped,
    student,
)
from tests.vllm.test_recipe import SAME, lines, run_of
from tutelage.core.errors import ModelError
from tutelage.models import save_model
from tutelage.recipes.config import Recipe
from tutelage.recipes.narrator import Advance, Narrator
from tutelage.recipes.run import run_recipe

pytestmark = pytest.mark.vllm


@final
class Meddler(Narrator):
    """Does something, once, when the training has come so far."""

    def __init__(self, act: Callable[[], None], *, at: int) -> None:
        self._act, self._at = act, at

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Advance]:
        def advance(done: int, note: str = "") -> None:
            if (title, done) == ("Training", self._at):
                self._act()

        yield advance

    @override
    def say(self, text: str) -> None:
        pass


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name, seed in (("student", 0), ("teacher", 5)):
        save_model(student(seed), byte_tokenizer(), tmp_path / name)
    return tmp_path / "student", tmp_path / "teacher"


KILLED_AT_THREE = """
import sys

from tests.recipes.killing import Killer
from tutelage.recipes.config import load
from tutelage.recipes.run import run_recipe

run_recipe(load(sys.argv[1]), narrator=Killer("Training", at=3))
"""


def test_a_killed_run_goes_on_with_the_weights_of_its_last_checkpoint(
    vllm_server: Server, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    vllm = {"mode": "server", "url": vllm_server.url}
    whole = lines(run_recipe(run_of(tmp_path / "whole", *pair, vllm)).folder)
    recipe = run_of(tmp_path / "broken", *pair, vllm)
    (tmp_path / "run.yaml").write_text(recipe.model_dump_json())
    command = [sys.executable, "-c", KILLED_AT_THREE, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "broken" / "summary.json").exists()
    # vLLM still has the weights of step 3; the run goes on from the checkpoint of step 2.
    again = lines(run_recipe(recipe, resume=True).folder)
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    for one, other in zip(whole, again, strict=True):
        assert other["engine_drift_max"] < SAME
        assert other["completion_tokens"] == one["completion_tokens"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


class Mortal:
    """A server of a test's own, that may be killed and begins again with its first weights."""

    def __init__(self, python: str, folder: Path) -> None:
        save_model(student(), byte_tokenizer(), folder / "served")
        self.server = Server(f"http://127.0.0.1:{free_port()}", folder / "log")
        self._python, self._model = python, folder / "served"
        self.start()
        await_answers(self.server, self.process)

    def start(self) -> None:
        self.process = started(self._python, self._model, self.server)

    def kill(self) -> None:
        killed(self.process)

    def kill_and_start(self) -> None:
        self.kill()
        # While the run waits: it is not told.
        threading.Timer(2, self.start).start()


@pytest.fixture
def mortal(vllm_python: str, tmp_path: Path) -> Iterator[Mortal]:
    one = Mortal(vllm_python, tmp_path)
    yield one
    stopped(one.process)


def test_a_run_outlives_the_server_that_writes_for_it(
    mortal: Mortal, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def recipe(**patience: Any) -> Recipe:
        vllm = {"mode": "server", "url": mortal.server.url, **patience}
        return run_of(tmp_path / "run", *pair, vllm, training={"save_every": 1})

    # Where it stays away, the run says who and how to go on, and nothing of it is lost.
    gone = Meddler(mortal.kill, at=2)
    with pytest.raises(ModelError, match=rf"The vLLM at {mortal.server.url} .* --resume"):
        run_recipe(recipe(patience_seconds=1), narrator=gone)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]
    mortal.start()
    await_answers(mortal.server, mortal.process)
    # Where it comes back, the run has waited; it has given it the student's weights again.
    back = Meddler(mortal.kill_and_start, at=3)
    outcome = run_recipe(recipe(patience_seconds=600), resume=True, narrator=back)
    steps = lines(outcome.folder)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(0 < line["engine_drift_max"] < SAME for line in steps)
    assert steps[-1]["engine_retries"] > 0
