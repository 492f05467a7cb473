"""Reading what a run left behind, whole or not."""

import json
import math

import pytest

from tests.reports.made_up import make_run, write_json, write_lines
from tutelage.core.errors import DataError
from tutelage.reports.run_folder import flat, read_run


def test_a_whole_run_is_read_with_its_baseline(tmp_path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert run.finished
    assert not run.problems
    assert len(run.train) == 300
    assert run.evals[0]["step"] == 0
    assert set(run.positions) == {"before", "after"}
    assert run.baselines["cross_entropy"].train[0]["loss"] > 0
    assert len(run.token_rows) == 24


def test_a_folder_without_a_run_says_what_it_should_hold(tmp_path) -> None:
    with pytest.raises(DataError, match=r"is not a run folder; it must hold recipe\.yaml"):
        read_run(tmp_path)


def test_half_a_line_is_left_out_and_counted(tmp_path) -> None:
    whole = json.dumps({"step": 1, "phase": "train", "loss": 2.0})
    (tmp_path / "metrics.jsonl").write_text(f"{whole}\n[1]\n{whole[:20]}", encoding="utf-8")
    run = read_run(tmp_path)
    assert len(run.train) == 1
    assert run.problems == ["metrics.jsonl: 2 unreadable line(s) left out."]
    assert not run.finished


def test_a_step_that_a_resumed_run_did_again_counts_once_and_as_redone(tmp_path) -> None:
    steps = [1, 2, 3, 2, 3, 4]
    lines = [{"step": s, "phase": "train", "loss": float(i)} for i, s in enumerate(steps)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    run = read_run(tmp_path)
    assert [(p["step"], p["loss"]) for p in run.train] == [(1, 0), (2, 3), (3, 4), (4, 5)]


def test_a_nan_loss_stays_one_and_words_and_truths_are_no_numbers(tmp_path) -> None:
    line = {"step": 1, "phase": "train", "loss": math.nan, "name": "x", "ok": True, "t": None}
    write_lines(tmp_path / "metrics.jsonl", [line])
    (point,) = read_run(tmp_path).train
    assert set(point) == {"step", "loss"}
    assert math.isnan(point["loss"])


def test_token_columns_of_unequal_length_are_left_out_and_counted(tmp_path) -> None:
    good = {"row": 0, "when": "after", "prompt": "p", "tokens": ["a", "b"], "forward_kl": [1, None]}
    bad = {**good, "forward_kl": [1.0]}
    write_lines(tmp_path / "metrics.jsonl", [])
    write_lines(tmp_path / "tokens.jsonl", [good, bad])
    run = read_run(tmp_path)
    assert len(run.token_rows) == 1
    assert math.isnan(run.token_rows[0].forward_kl[1])
    assert run.token_rows[0].teacher_top == ["", ""]
    assert run.problems == ["tokens.jsonl: 1 row(s) with columns of unequal length left out."]


def test_broken_files_are_named_and_the_rest_is_read(tmp_path) -> None:
    make_run(tmp_path / "run")
    folder = tmp_path / "run"
    (folder / "summary.json").write_text('{"title": "cut', encoding="utf-8")
    (folder / "recipe.yaml").write_text("a: [1,", encoding="utf-8")
    (folder / "samples.jsonl").write_bytes(b"\xff\xfe\x00")
    write_json(folder / "positions.json", [1, 2])
    write_json(folder / "versions.json", {})
    (folder / "baselines" / "cross_entropy" / "metrics.jsonl").write_text("{", encoding="utf-8")
    run = read_run(folder)
    assert len(run.train) == 300
    told = " ".join(run.problems)
    for name in ("summary.json", "recipe.yaml", "samples.jsonl", "positions.json", "cross_entropy"):
        assert name in told


def test_positions_may_lack_their_columns(tmp_path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [])
    write_json(
        tmp_path / "positions.json",
        {"before": {"forward_kl": [1.0, 2.0]}, "after": {"forward_kl": [1.0], "count": []}, "x": 3},
    )
    run = read_run(tmp_path)
    assert list(run.positions["before"].position) == [0.0, 1.0]
    assert list(run.positions["before"].count) == [1.0, 1.0]
    assert "x" not in run.positions


def test_nested_settings_become_dotted_paths() -> None:
    nested = {"a": {"b": 1, "c": [1, "x"]}, "d": None, "e": {}}
    assert flat(nested) == {"a.b": "1", "a.c": "1, x", "d": "not set", "e": "not set"}
