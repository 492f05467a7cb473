"""Kill -9 at any moment, go on, and nothing tells the run from one that was never killed.

Adaptive TAID, micro-batches, shuffled rows, dropout, weight decay and evaluation are all on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.kill_script import (
    AVERAGED,
    AVERAGED_UNBROKEN,
    ROUTED,
    ROUTED_DEATHS,
    SCENARIOS,
    UNBROKEN,
)
from tutelage.core.run_log import TIME_FIELDS, read_metrics
from tutelage.training.state_tree import load_tree

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def start(
    folder: Path, *options: str, script: str = "tests.training.kill_script"
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", script, str(folder), *options],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unbroken run, and one for each place of death."""
    folder = tmp_path_factory.mktemp("runs")
    process = start(folder)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    return folder


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def untimed(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in lines]


def compare(folder: Path, unbroken: Path, *, steps: tuple[int, int] = (8, 9)) -> None:
    last, expected = (path / "checkpoints" / f"step-{steps[1]}" for path in (folder, unbroken))
    assert (last / "student.safetensors").read_bytes() == (
        expected / "student.safetensors"
    ).read_bytes()
    ours, theirs = (dict(load_tree(path / "run")) for path in (last, expected))
    for state in (ours, theirs):
        state.pop("seconds")
    for part, state in theirs.items():
        assert same(ours[part], state), part
    assert same(load_tree(last / "rank-0"), load_tree(expected / "rank-0"))
    assert untimed(folder) == untimed(unbroken)
    found = [path.name for path in sorted(last.parent.iterdir())]
    assert found == [f"step-{step}" for step in steps]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_killed_anywhere_goes_on_bit_for_bit(runs: Path, name: str) -> None:
    assert (runs / name / "killed").read_text() == f"by signal {signal.SIGKILL}"
    compare(runs / name, runs / UNBROKEN)


def test_a_run_killed_between_its_weights_and_their_average_goes_on_bit_for_bit(
    runs: Path,
) -> None:
    assert (runs / AVERAGED / "killed").read_text() == f"by signal {signal.SIGKILL}"
    compare(runs / AVERAGED, runs / AVERAGED_UNBROKEN)
    state = load_tree(runs / AVERAGED / "checkpoints" / "step-9" / "run")
    averages = state["parts"]["teacher"]["averages"]
    earlier = load_tree(runs / AVERAGED / "checkpoints" / "step-8" / "run")
    before = earlier["parts"]["teacher"]["averages"]
    assert averages
    assert all(not torch.equal(before[name], average) for name, average in averages.items())


@pytest.mark.parametrize("kind", ROUTED)
@pytest.mark.parametrize("death", ROUTED_DEATHS)
def test_a_run_killed_around_the_move_of_its_biases_goes_on_bit_for_bit(
    runs: Path, kind: str, death: str
) -> None:
    folder, whole = runs / f"{kind}, killed {death}", runs / f"{kind}, unbroken"
    assert (folder / "killed").read_text() == f"by signal {signal.SIGKILL}"
    compare(folder, whole)
    names = load_file(whole / "checkpoints" / "step-9" / "student.safetensors")
    biases = [tensor for name, tensor in names.items() if name.endswith("padd_bias")]
    assert len(biases) == 2
    assert all(bias.any() == (kind == "balanced") for bias in biases)


def test_the_run_that_is_compared_with_does_all_that_could_be_lost(runs: Path) -> None:
    lines = untimed(runs / UNBROKEN)
    train = [line for line in lines if line["phase"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 10))
    assert len({line["t"] for line in train}) == 8
    assert [line["step"] for line in lines if line["phase"] == "eval"] == [0, 3, 6, 9]
    state = load_tree(runs / UNBROKEN / "checkpoints" / "step-9" / "rank-0")
    assert state["rollouts"]["num_taken"] == 90
    manifest = runs / UNBROKEN / "checkpoints" / "step-9" / "manifest.json"
    assert json.loads(manifest.read_text())["step"] == 9


def test_a_run_killed_from_outside_at_no_chosen_moment_goes_on_bit_for_bit(
    runs: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "--once")
    log = tmp_path / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log.exists() and len(log.read_text().splitlines()) > 4):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = start(tmp_path, "--once")
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    compare(tmp_path, runs / UNBROKEN)
