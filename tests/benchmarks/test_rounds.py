import math
from pathlib import Path

import pytest
from benchmarks.rounds import NONE_LEFT, SOME_LEFT_OUT, Judged

from benchmarks import command, loss, rounds


def answer(seconds: float, cpu_per_wall: float = 1.0) -> dict:
    return {
        "wall_seconds": seconds,
        "cpu_seconds": seconds * cpu_per_wall,
        "cpu_per_wall": cpu_per_wall,
    }


def judge(given: list[dict], floor: list[float], threads: int = 1) -> Judged:
    return rounds.judged({"a": given}, threads=threads, floors={"a": floor})["a"]


def test_quiet_rounds_are_all_believed_and_bear_no_mark() -> None:
    row = judge([answer(3.0), answer(1.0), answer(2.0)], [1.0, 1.09, 1.05])
    assert row.median("wall_seconds") == 2.0
    assert row.label("ours") == "ours"
    assert rounds.footnotes({"ours": row}) == ""


@pytest.mark.parametrize(("threads", "cpu_per_wall"), [(1, 0.84), (2, 1.69)])
def test_a_round_that_shared_its_cores_is_left_out(threads: int, cpu_per_wall: float) -> None:
    given = [answer(1.0, float(threads)), answer(9.0, cpu_per_wall), answer(2.0, 0.86 * threads)]
    row = judge(given, [1.0] * 3, threads)
    assert row.disturbed == [2]
    assert row.median("wall_seconds") == 1.5
    assert row.label("ours") == f"ours{SOME_LEFT_OUT}"
    assert "left out of the medians: ours, round 2." in rounds.footnotes({"ours": row})


def test_a_round_with_a_slow_floor_is_left_out_for_everybody() -> None:
    floors = {"a": [1.2, 1.0, 1.11], "b": [1.2, 1.0, 1.11]}
    given = {name: [answer(5.0), answer(2.0), answer(4.0)] for name in floors}
    found = rounds.judged(given, threads=1, floors=floors)
    assert [row.disturbed for row in found.values()] == [[1, 3], [1, 3]]
    assert [row.median("wall_seconds") for row in found.values()] == [2.0, 2.0]
    assert "a, rounds 1, 3; b, rounds 1, 3." in rounds.footnotes(found)
    assert rounds.spread(floors) == pytest.approx(1.2)


def test_where_no_round_was_quiet_all_count_and_none_is_to_be_trusted() -> None:
    row = judge([answer(1.0, 0.5), answer(3.0, 0.6)], [1.0, 1.0])
    assert row.median("wall_seconds") == 2.0
    assert row.label("ours") == f"ours{NONE_LEFT}"
    assert "not to be trusted" in rounds.footnotes({"ours": row})


def test_a_failure_is_no_quiet_round() -> None:
    row = judge([answer(1.0, 0.5), {"error": "killed"}], [1.0, math.nan])
    assert row.median("wall_seconds") == 1.0
    assert row.label("ours") == f"ours{NONE_LEFT}: killed"
    alone = judge([{"error": "killed"}], [math.nan])
    assert alone.label("ours") == "ours: killed"
    assert math.isnan(alone.median("wall_seconds"))


def test_the_loss_is_held_against_the_floor_of_the_same_round(tmp_path: Path) -> None:
    plan = loss.plan_from(["--folder", str(tmp_path)])
    answers = {
        loss.FLOOR: [answer(1.0), answer(1.2), answer(1.0)],
        "ours": [answer(2.0), answer(8.0), answer(4.0)],
        "broken": [{"error": "killed"}],
    }
    table, marks, notes = loss.body_of(plan, answers, threads=1, tokens=8, dtype="fp32")
    ours = next(line for line in table.splitlines() if line.startswith("| ours"))
    assert ours.startswith("| ours\\* | 3 | 3 | 3 |")
    assert f"{loss.FLOOR}, round 2; ours, round 2." in marks
    assert "moved by a factor of 1.2 between" in notes.replace("\n", " ")
    assert "| broken: killed |" in table


def test_a_floor_that_failed_judges_nobody(tmp_path: Path) -> None:
    plan = loss.plan_from(["--folder", str(tmp_path)])
    answers = {loss.FLOOR: [{"error": "killed"}], "ours": [answer(2.0), answer(4.0)]}
    table, marks, _ = loss.body_of(plan, answers, threads=1, tokens=8, dtype="fp32")
    assert "| ours | 3 |" in table
    assert marks == ""


def test_a_notebook_keeps_each_section_as_it_comes(tmp_path: Path) -> None:
    notebook = command.Notebook(name="loss", folder=tmp_path)
    notebook.add("first", threads=1, body=["a", "", "b"], numbers=1)
    notebook.add("second", threads=2, body=["c"], numbers=2)
    written = (tmp_path / "loss.md").read_text()
    assert written == "### first, 1 thread\n\na\n\nb\n\n### second, 2 threads\n\nc\n"
    assert list(notebook.results) == ["machine", "first, 1 thread", "second, 2 threads"]


def test_quick_is_one_round_on_one_thread() -> None:
    sweep = loss.plan_from(["--quick", "--rounds", "7", "--threads", "2", "4"]).sweep
    assert (sweep.num_rounds, sweep.threads) == (1, (2,))
