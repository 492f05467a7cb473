import json
import math
from pathlib import Path

import pytest
from benchmarks.measure import Job

from benchmarks import measure


def test_the_median_is_over_the_rounds_that_gave_the_number() -> None:
    rounds = [{"seconds": 3.0}, {"seconds": 1.0}, {"error": "killed"}, {"seconds": 2.0}]
    assert measure.median_of(rounds, "seconds") == 2.0
    assert math.isnan(measure.median_of([{"error": "killed"}], "seconds"))


def test_jobs_take_turns_and_a_failed_one_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def ask(job: Job) -> measure.Answer:
        asked.append(job.name)
        return {"error": "no"} if job.name == "b" else {"seconds": 1.0}

    monkeypatch.setattr(measure, "ask", ask)
    jobs = [Job(name=name, module="nowhere", request={}) for name in "abc"]
    answers = measure.interleaved(jobs, num_rounds=3)
    assert "".join(asked) == "abcacac"
    assert [len(answers[name]) for name in "abc"] == [3, 1, 3]


def test_a_worker_that_fails_answers_with_its_error() -> None:
    answer = measure.ask(Job(name="broken", module="benchmarks.no_such_module", request={}))
    assert "no_such_module" in answer["error"]


def test_a_worker_answers_with_the_last_marked_line(capsys: pytest.CaptureFixture[str]) -> None:
    measure.serve(lambda asked: {"double": 2 * asked["number"]}, '{"number": 4}')
    line = capsys.readouterr().out.strip()
    assert json.loads(line.removeprefix(measure.RESULT_MARK)) == {"double": 8}


def test_the_peak_counts_what_was_held_and_given_back() -> None:
    held = measure.reset_peak()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    assert measure.peak_bytes() - held >= 60 * 2**20


def test_a_table_has_a_rule_and_one_line_a_row() -> None:
    table = measure.markdown_table(["what", "much"], [["a", "1"], ["b", "2"]])
    assert table.splitlines() == ["| what | much |", "| --- | ---: |", "| a | 1 |", "| b | 2 |"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (12.345, "12.3"), (1234.5, "1,234"), (math.nan, "-")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert measure.in_short(value) == text


def test_results_are_kept_as_numbers_and_as_a_table(tmp_path: Path) -> None:
    measure.write_results("loss", {"a": 1}, "| a |\n", folder=tmp_path / "new")
    assert json.loads((tmp_path / "new" / "loss.json").read_text()) == {"a": 1}
    assert (tmp_path / "new" / "loss.md").read_text() == "| a |\n"
