"""The run folder's lines survive kills, are cut back on resume, and say when they are refused."""

import json
from pathlib import Path

import pytest

from tutelage.core.errors import DataError, OutputError
from tutelage.core.run_log import (
    TIME_FIELDS,
    RunFolder,
    RunLog,
    append_jsonl,
    read_jsonl,
    read_metrics,
    write_json,
    write_jsonl,
)


def write_steps(log: RunLog, *steps: int) -> None:
    for step in steps:
        log.write(step=step, phase="train", seconds=float(step), numbers={"loss": 1.0 / step})


def test_each_line_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLog(path)
    write_steps(log, 1)
    assert json.loads(path.read_text()) == {
        "step": 1,
        "phase": "train",
        "seconds": 1.0,
        "loss": 1.0,
    }
    log.close()


def test_resuming_cuts_off_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path) as log:
        write_steps(log, 1, 2)
        log.write(step=2, phase="eval", seconds=2.5, numbers={"forward_kl": 0.5})
        write_steps(log, 3, 4)
    with path.open("a") as file:
        file.write('{"step": 5, "pha')

    with RunLog(path, keep_up_to=2) as log:
        write_steps(log, 3)

    lines = read_metrics(path)
    assert [(line["step"], line["phase"]) for line in lines] == [
        (1, "train"),
        (2, "train"),
        (2, "eval"),
        (3, "train"),
    ]
    assert [line["step"] for line in read_metrics(path, phase="eval")] == [2]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path) as log:
        write_steps(log, 1)
    RunLog(path).close()
    assert read_metrics(path) == []


def test_rewriting_kept_lines_changes_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path) as log:
        log.write(step=1, phase="train", seconds=0.1 + 0.2, numbers={"loss": 1 / 3, "n": 10**12})
    before = path.read_text()
    RunLog(path, keep_up_to=1).close()
    assert path.read_text() == before


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path) as log:
        log.write(
            step=0, phase="eval", seconds=0.0, numbers={"a": float("inf"), "b": [float("nan")]}
        )
    assert read_metrics(path)[0]["a"] is None
    assert read_metrics(path)[0]["b"] == [None]


def test_an_unfinished_last_line_is_left_out_and_a_broken_one_in_the_middle_is_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert read_jsonl(path) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl line 2 is not JSON"):
        read_jsonl(path)
    with pytest.raises(DataError, match=r"missing\.jsonl is not readable"):
        read_jsonl(tmp_path / "missing.jsonl")


def test_rows_and_objects_come_back_as_they_were(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write_jsonl(folder.samples, [{"when": "before", "completion": "où"}])
    append_jsonl(folder.samples, [{"when": "after", "completion": "là"}])
    write_json(folder.summary, {"rows": [{"name": "before"}]})
    assert [row["completion"] for row in read_jsonl(folder.samples)] == ["où", "là"]
    assert json.loads(folder.summary.read_text()) == {"rows": [{"name": "before"}]}
    assert [path.name for path in sorted(folder.root.iterdir())] == [
        "samples.jsonl",
        "summary.json",
    ]


def test_every_path_of_the_layout_lies_in_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).baseline("cross_entropy")
    names = [
        folder.recipe, folder.versions, folder.metrics, folder.samples, folder.tokens,
        folder.positions, folder.summary, folder.checkpoints, folder.student, folder.plots,
        folder.report,
    ]  # fmt: skip
    root = tmp_path / "baselines" / "cross_entropy"
    assert [path.relative_to(root).as_posix() for path in names] == [
        "recipe.yaml", "versions.json", "metrics.jsonl", "samples.jsonl", "tokens.jsonl",
        "positions.json", "summary.json", "checkpoints", "student", "plots", "report.html",
    ]  # fmt: skip
    assert "seconds" in TIME_FIELDS


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match="Choose another output folder"):
        RunFolder(blocked / "run").create()
    with pytest.raises(OutputError, match=r"metrics\.jsonl is not writable"):
        RunLog(blocked / "metrics.jsonl")
    with pytest.raises(OutputError, match=r"summary\.json is not writable"):
        write_json(blocked / "summary.json", {})
    with pytest.raises(OutputError, match=r"samples\.jsonl is not writable"):
        append_jsonl(blocked / "samples.jsonl", [])
    folder = RunFolder(tmp_path / "new" / "run")
    folder.create()
    assert list(folder.root.iterdir()) == []


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    log = RunLog.__new__(RunLog)
    log._path = Path("/dev/full")
    log._file = Path("/dev/full").open("w")  # noqa: SIM115 (the log owns it)
    with pytest.raises(OutputError, match="/dev/full is not writable"):
        write_steps(log, 1)
    with pytest.raises(OSError, match="No space"):
        log._file.close()
