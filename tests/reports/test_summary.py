"""The result in words: plain, and honest about bad news."""

from pathlib import Path
from typing import Any

import pytest

from tests.reports.made_up import make_run, summary_row, write_json, write_lines
from tutelage.reports.run_folder import RunRecord, read_run
from tutelage.reports.summary import bars, headline, summary_rows, table, tiles


def run_of(folder: Path, rows: list[dict[str, Any]]) -> RunRecord:
    folder.mkdir(exist_ok=True)
    write_json(folder / "summary.json", {"title": "t", "rows": rows, "notes": []})
    return read_run(folder)


def told(run: RunRecord) -> str:
    said = headline(run, summary_rows(run))
    return " ".join([said.lead, *said.more]).replace("\u00a0", " ")


def test_a_good_run_says_how_much_of_its_divergence_is_gone(tmp_path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert told(run).startswith(
        "The student lost 57 % of its forward KL to the teacher: from 1.897 to 0.823 nats a token."
    )
    assert (
        "Cross-entropy on the same rows reached 0.912 nats; distillation ends 9.8 % lower"
        in told(run)
    )


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (1.0, 1.2, "The student moved away from its teacher: from 1.000 to 1.200"),
        (1.0, 1.0, "The student is as far from its teacher as before"),
        (0.0, 0.5, "The student is 0.500 nats a token away from its teacher."),
        (None, 0.5, "The student is 0.500 nats a token away from its teacher."),
        (float("nan"), float("nan"), "Held-out perplexity"),
    ],
)
def test_every_outcome_has_its_words(tmp_path, before, after, text: str) -> None:
    rows = [
        {"name": "before", "forward_kl": before, "perplexity": 20.0},
        {"name": "distilled", "forward_kl": after, "perplexity": 10.0},
    ]
    assert text in told(run_of(tmp_path, rows))


def test_a_better_baseline_is_told_as_such(tmp_path) -> None:
    rows = [
        summary_row("before", 2.0),
        summary_row("cross_entropy", 0.5),
        summary_row("distilled", 1.0),
    ]
    assert "distillation ends 50.0 % behind" in told(run_of(tmp_path, rows))
    rows[2] = summary_row("distilled", 0.5)
    assert "distillation ends at the same value" in told(run_of(tmp_path, rows))


def test_without_a_teacher_the_perplexity_speaks(tmp_path) -> None:
    rows = [{"name": "before", "perplexity": 20.0}, {"name": "distilled", "perplexity": 10.0}]
    run = run_of(tmp_path, rows)
    assert told(run) == "Held-out perplexity fell from 20.00 to 10.00."
    assert bars(run, rows) == []


def test_an_interrupted_run_speaks_from_its_latest_evaluation(tmp_path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    run = read_run(tmp_path / "run")
    assert told(run).startswith("So far, the student lost")
    assert "has not finished" in told(run)
    names = [row["name"] for row in summary_rows(run)]
    assert names == ["before", "cross_entropy", "distilled"]


def test_a_run_that_measured_nothing_says_so(tmp_path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [])
    run = read_run(tmp_path)
    assert "Nothing has been measured" in told(run)
    assert tiles([]) == []
    assert table(run, []).rows == []


def test_the_best_student_of_a_column_is_marked_and_never_the_teacher(tmp_path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    rows = table(run, summary_rows(run)).rows
    best = {name: [cell.best for cell in cells][:4] for name, _, cells in rows}
    assert best["Distilled"] == [True] * 4
    assert not any(any(best[name]) for name in ("Before", "Cross-entropy", "Teacher"))
    # Size, speed and time have no better or worse here.
    assert not any(cell.best for _, _, cells in rows for cell in cells[4:])


def test_bars_are_as_long_as_their_divergence(tmp_path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    found = bars(run, summary_rows(run))
    assert [bar.name for bar in found] == ["Before", "Cross-entropy", "Distilled"]
    assert found[0].width == 100
    assert found[2].width == pytest.approx(100 * 0.823 / 1.897)
