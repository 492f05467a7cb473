"""Kill -9 while a student writes, learns or is saved: the run goes on bit for bit.

Adaptive TAID, gradient accumulation and dropout are on in all; beside them a moving share, a replay
buffer, or an adapter that its own running average teaches.
"""

import signal
from pathlib import Path

import pytest
import torch

from tests.training.kill_script import UNBROKEN
from tests.training.on_policy_kill_script import SCENARIOS, STEPS, TAUGHT
from tests.training.test_resume import compare, start, untimed
from tutelage.training.state_tree import load_tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each kind of rollouts one unbroken run, and one for each place of death."""
    folder = tmp_path_factory.mktemp("runs")
    process = start(folder, script="tests.training.on_policy_kill_script")
    said = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, said
    return folder


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in SCENARIOS.items() for name in names]
)
def test_an_on_policy_run_killed_anywhere_goes_on_bit_for_bit(
    runs: Path, kind: str, name: str
) -> None:
    folder, unbroken = runs / kind / name, runs / kind / UNBROKEN
    assert (folder / "killed").read_text() == f"by signal {signal.SIGKILL}"
    compare(folder, unbroken, steps=STEPS)
    assert (folder / "rollouts.jsonl").read_bytes() == (unbroken / "rollouts.jsonl").read_bytes()


def test_the_runs_that_are_compared_with_do_all_that_could_be_lost(runs: Path) -> None:
    mixed, replay, taught = (
        [line for line in untimed(runs / kind / UNBROKEN) if line["phase"] == "train"]
        for kind in SCENARIOS
    )
    assert len({line["t"] for line in taught}) == STEPS[1] - 1
    averages = [
        load_tree(runs / TAUGHT / UNBROKEN / "checkpoints" / f"step-{step}" / "run")["parts"][
            "teacher"
        ]["averages"]
        for step in STEPS
    ]
    assert all(not torch.equal(averages[0][name], moved) for name, moved in averages[1].items())
    assert len({line["student_share"] for line in mixed}) == STEPS[1]
    assert len({line["t"] for line in mixed}) == STEPS[1] - 1
    assert 0 < sum(line["written_share"] for line in mixed) < STEPS[1]
    assert len({line["fresh_share"] for line in replay}) == STEPS[1]
    assert any(line["generated_tokens"] < 8 * line["completion_tokens"] for line in replay)
    last = runs / "replay" / UNBROKEN / "checkpoints" / f"step-{STEPS[1]}"
    assert len(load_tree(last / "rank-0")["rollouts"]["buffer"]) == 12
