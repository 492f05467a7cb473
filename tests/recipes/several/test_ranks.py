"""Two processes learn from caches and several teachers as one does; real ones, joined by gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.recipes.several.rank_script import weights_after
from tests.recipes.several.runs import cached, live, models_and_rows, recipe_of, several
from tests.training.test_ranks import REPOSITORY, free_port
from tutelage.recipes.config import load, to_yaml
from tutelage.teachers.cache import CacheFolder

NAMES = ("live", "cached", "row", "row-cached", "row-turn", "likelihood", "likelihood-cached")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left their students' weights."""
    folder = models_and_rows(tmp_path_factory.mktemp("several"))
    caches = {name: cached(folder, name) for name in ("one", "other")}
    by_likelihood = "by: router, router: {kind: likelihood, temperature: 0.1}"
    teachers = {
        "live": live(folder, "one"),
        "cached": caches["one"],
        "row": several(folder, "by: row"),
        "row-cached": several(folder, "by: row", other=caches["other"]),
        "row-turn": several(folder, "by: row, sequential: true"),
        "likelihood": several(folder, by_likelihood),
        "likelihood-cached": several(folder, by_likelihood, **caches),
    }
    assert teachers.keys() == set(NAMES)
    (folder / "recipes").mkdir()
    # Rows of other lengths in each rank's micro-batches.
    extra = ("training.save_every=null", "training.micro_batch_tokens=24")
    for name, teacher in teachers.items():
        recipe = recipe_of(folder, "unused", teacher, *extra)
        (folder / "recipes" / f"{name}.yaml").write_text(to_yaml(recipe))
    port = free_port()
    processes = [start(folder, rank, port) for rank in range(2)]
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


def start(folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.recipes.several.rank_script", str(folder), str(rank)],
        env={**os.environ, **{name: str(value) for name, value in own.items()}},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def of_rank(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_ranks_have_the_same_weights_to_the_bit(two: Path, name: str) -> None:
    assert equal(of_rank(two, name), of_rank(two, name, 1))


@pytest.mark.parametrize("name", ["cached", "row-cached", "likelihood-cached"])
def test_two_ranks_learn_as_one(two: Path, name: str) -> None:
    alone = weights_after(load(str(two / "recipes" / f"{name}.yaml")), two / f"{name}-1")
    together = of_rank(two, name)
    for weight, value in alone.items():
        torch.testing.assert_close(together[weight], value, rtol=1e-3, atol=2e-5)
    # Another teacher's lessons are others.
    assert not equal(of_rank(two, "row" if name == "cached" else "cached"), together)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("cached", "live"),
        ("row-cached", "row"),
        ("row-turn", "row"),
        ("likelihood-cached", "likelihood"),
    ],
)
def test_on_two_ranks_too_a_cache_is_the_live_teacher_to_the_bit(
    two: Path, name: str, same: str
) -> None:
    assert equal(of_rank(two, name), of_rank(two, same))


def test_the_answers_of_teachers_one_at_a_time_are_written_once(two: Path) -> None:
    stores = [CacheFolder(one).store("training") for one in (two / "row-turn-2/answers").iterdir()]
    assert [store.num_rows for store in stores] == [6, 6]
