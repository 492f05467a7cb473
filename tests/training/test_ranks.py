"""Two processes train as one: the same losses, clocks and weights, whatever each of them holds.

The processes are real, joined by gloo; one run in the test itself is what they must equal.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.rank_script import RUNS, run
from tests.training.tiny_runs import settings, trainer
from tutelage.core.errors import CheckpointError, OutputError
from tutelage.training import Ranks

REPOSITORY = Path(__file__).parents[2]


def start(folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.rank_script", str(folder)],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    port = free_port()
    processes = [start(folder, rank, port) for rank in range(2)]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


def found(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"found-{rank}.json").read_text())


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one(two: Path, name: str) -> None:
    alone = run(name, Ranks())
    assert found(two, 0)["num_ranks"] == 2
    # Only the main rank tells its hooks.
    assert found(two, 1)[name] == []
    for ours, theirs in zip(found(two, 0)[name], alone["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    together = load_file(two / f"{name}-0.safetensors")
    for weight, value in alone["weights"].items():
        torch.testing.assert_close(together[weight], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", [*RUNS, "resumed"])
def test_the_ranks_have_the_same_weights_to_the_bit(two: Path, name: str) -> None:
    first, second = (load_file(two / f"{name}-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())


def test_a_run_of_two_ranks_goes_on_bit_for_bit(two: Path) -> None:
    assert found(two, 0)["resumed equal"]
    assert found(two, 1)["resumed equal"]
    names = {path.name for path in (two / "again" / "checkpoints" / "step-6").iterdir()}
    assert {"rank-0.json", "rank-1.json", "student.safetensors"} <= names


def test_each_rank_draws_its_own_dropout_masks(two: Path) -> None:
    first, second = found(two, 0)["dropout"]
    assert first != second


def test_a_nan_on_one_rank_stops_both(two: Path) -> None:
    assert "another process" in found(two, 0)["broken"]
    assert "the student's hidden states are nan" in found(two, 1)["broken"]


def test_a_checkpoint_of_two_ranks_is_refused_by_one(two: Path) -> None:
    from tests.training.rank_script import ADAPTIVE

    chosen = settings(num_steps=6, save_every=3, micro_batch_tokens=24)
    with pytest.raises(CheckpointError, match="number of processes is 1; it must be 2"):
        trainer(settings=chosen, move=ADAPTIVE, output=two / "again").train(resume=True)


def test_a_failure_here_is_raised_as_it_is() -> None:
    def fail() -> None:
        message = "no room"
        raise OutputError(message)

    with pytest.raises(OutputError, match="no room"):
        Ranks().together(fail)


def test_rows_that_do_not_divide_by_the_ranks_are_refused(two: Path) -> None:
    assert "is 9; it must be a multiple of the number of processes, 2" in found(two, 1)["odd"]
