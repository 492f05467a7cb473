"""Kill -9 in the middle of a batch's steps: the run goes on bit for bit.

Half of the batch's parts are still to come in most checkpoints here, with what the student said of
them, and its routers, before the first of its steps.
"""

import signal
from pathlib import Path

import pytest

from tests.training.kill_script import UNBROKEN
from tests.training.policy_kill_script import POLICIES, SCENARIOS, STEPS
from tests.training.test_resume import compare, start, untimed
from tutelage.training.state_tree import load_tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each student one unbroken run, and one for each place of death."""
    folder = tmp_path_factory.mktemp("runs")
    process = start(folder, script="tests.training.policy_kill_script")
    said = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, said
    return folder


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_killed_in_the_middle_of_a_batch_goes_on_bit_for_bit(
    runs: Path, kind: str, name: str
) -> None:
    folder, unbroken = runs / kind / name, runs / kind / UNBROKEN
    assert (folder / "killed").read_text() == f"by signal {signal.SIGKILL}"
    compare(folder, unbroken, steps=STEPS)
    assert (folder / "rollouts.jsonl").read_bytes() == (unbroken / "rollouts.jsonl").read_bytes()


@pytest.mark.parametrize("kind", POLICIES)
def test_the_runs_that_are_compared_with_do_all_that_could_be_lost(runs: Path, kind: str) -> None:
    lines = [line for line in untimed(runs / kind / UNBROKEN) if line["phase"] == "train"]
    assert [line["batch_step"] for line in lines] == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert all(line["distill_loss"] > 0 for line in lines if "distill_loss" in line)
    assert sum("distill_loss" in line for line in lines) >= 3
    state = load_tree(runs / kind / UNBROKEN / "checkpoints" / f"step-{STEPS[1]}" / "rank-0")
    waiting = state["rollouts"]
    assert len(waiting["parts"]) == 3
    assert len(waiting["lessons"]) == 12
    assert {lesson["picked"] for lesson in waiting["lessons"]} == {True, False}
    olds = [lesson["old"] for lesson in waiting["lessons"]]
    assert all(len(old["probabilities"]) == (2 if kind == "mixture" else 0) for old in olds)
    if kind == "mixture":
        for lesson, old in zip(waiting["lessons"], olds, strict=True):
            num_tokens = len(lesson["student_ids"]) + len(lesson["completion_ids"])
            assert [len(route) for route in old["routes"]] == [num_tokens] * 2
        assert [line["routing_shift"] == 0 for line in lines] == [n in (0, 6) for n in range(9)]
