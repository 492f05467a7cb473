"""Runs with several teachers, live and cached, and what they refuse."""

import json
from pathlib import Path

import pytest

from tests.recipes.several.runs import (
    WAYS,
    cached,
    live,
    models_and_rows,
    recipe_of,
    remote,
    several,
    trained,
)
from tutelage.core.errors import ConfigError, DataError
from tutelage.recipes.caching.make import CachePlan, make_cache
from tutelage.recipes.check import contradictions
from tutelage.recipes.doctor import examine
from tutelage.recipes.outline import outline_of
from tutelage.recipes.run import run_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models_and_rows(tmp_path)


@pytest.mark.parametrize("how", WAYS)
def test_cached_or_live_several_teachers_teach_the_same(folder: Path, how: str) -> None:
    alive = trained(recipe_of(folder, "alive", several(folder, how)))
    caches = {"one": cached(folder, "one"), "other": cached(folder, "other")}
    mixed = several(folder, how, other=caches["other"])
    assert trained(recipe_of(folder, "mixed", mixed)) == alive
    assert trained(recipe_of(folder, "cached", several(folder, how, **caches))) == alive
    assert trained(recipe_of(folder, "alone", live(folder, "one"))) != alive


def test_two_of_a_kind_are_one_up_to_rounding(folder: Path) -> None:
    same = live(folder, "one")
    twins = several(folder, "by: mixture", one=same, other=same)
    rows = [
        run_recipe(recipe_of(folder, n, t)).summary["rows"] for n, t in (("a", twins), ("b", same))
    ]
    for mine, theirs in zip(rows[0][:2], rows[1][:2], strict=True):
        for name in ("forward_kl", "perplexity", "top1_agreement"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
    assert rows[0][2]["perplexity"] == pytest.approx(rows[1][2]["perplexity"], rel=1e-5)


def test_the_student_may_write_for_live_teachers_that_are_blended(folder: Path) -> None:
    teacher = several(folder, "by: mixture")
    extra = (
        "rollouts.kind=student",
        "evaluation.written_rows=2",
        "rollouts.max_completion_tokens=4",
    )
    recipe = recipe_of(folder, "run", teacher, *extra)
    assert list(contradictions(recipe)) == []
    rows = run_recipe(recipe).summary["rows"]
    assert rows[1]["written_forward_kl"] >= 0


@pytest.mark.parametrize(
    ("how", "overrides", "complaint"),
    [
        ("by: row, weights: {one: 1, other: 1}", (), "teacher.weights are given"),
        ("by: mixture, weights: {one: 1}", (), "they must name each of one, other"),
        ("by: mixture, column: who", (), "teacher.column is who"),
        ("by: row", ("rollouts.kind=student",), "rollouts.kind is student, and teacher.by is row"),
        ("by: row", ("evaluation.written_rows=1",), "evaluation.written_rows is 1"),
        ("by: mixture", ("student={kind: pruned, keep_layers: 1}",), "student.kind is pruned"),
        ("by: mixture", ("rollouts.kind=teacher",), "several teachers write nothing together"),
    ],
)
def test_what_contradicts_itself_is_said(
    folder: Path, how: str, overrides: tuple[str, ...], complaint: str
) -> None:
    recipe = recipe_of(folder, "run", several(folder, how), *overrides)
    assert any(complaint in line for line in contradictions(recipe)), list(contradictions(recipe))


def test_a_cache_of_part_of_the_vocabulary_is_no_member(folder: Path) -> None:
    part = cached(folder, "one", answer="top_k", num_entries=8)
    recipe = recipe_of(folder, "run", several(folder, "by: mixture", one=part))
    (line,) = contradictions(recipe)
    assert line.startswith("teacher.teachers.one holds top_k answers; it must hold hidden states")
    gone = several(folder, "by: mixture", one="{kind: cached, folder: nowhere}")
    (line,) = contradictions(recipe_of(folder, "run", gone))
    assert line.startswith("teacher.teachers.one.folder is nowhere")


def test_a_row_that_names_no_teacher_is_named(folder: Path) -> None:
    recipe = recipe_of(folder, "run", several(folder, "by: row, column: prompt"))
    with pytest.raises(
        DataError, match=r"has '0 and' in column prompt; it must be one of one, other"
    ):
        run_recipe(recipe)


def test_equal_rows_name_one_teacher(folder: Path) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    twin = {**json.loads(lines[4]), "teacher": "other"}
    assert json.loads(lines[4])["teacher"] == "one"
    recipe = recipe_of(folder, "run", several(folder, "by: row"))
    (folder / "rows.jsonl").write_text("\n".join([*lines, lines[5], json.dumps(twin)]) + "\n")
    with pytest.raises(DataError, match=r"which has the same tokens, '(one|other)'; equal rows"):
        run_recipe(recipe)
    (folder / "rows.jsonl").write_text("\n".join([*lines, lines[5]]) + "\n")
    run_recipe(recipe)


def test_a_recipe_of_several_is_not_cached_as_one(folder: Path) -> None:
    recipe = recipe_of(folder, "run", several(folder, "by: mixture"))
    with pytest.raises(
        ConfigError, match=r"teacher\.kind is several; it must be live to be cached"
    ):
        make_cache(recipe, folder / "c", CachePlan())


def test_show_and_doctor_know_them(folder: Path) -> None:
    recipe = recipe_of(folder, "run", several(folder, "by: mixture", one=cached(folder, "one")))
    outline = dict(outline_of(recipe).lines())
    assert outline["teacher"] == "several, by mixture: one (cached), other (live)"
    assert {"memory: teacher one, its head", "memory: teacher other"} <= outline.keys()
    served = several(folder, "by: mixture", other=remote(folder, "http://127.0.0.1:9"))
    outline = dict(outline_of(recipe_of(folder, "run", served)).lines())
    assert "memory: teacher other, its head, at most" in outline
    assert [f for f in examine(recipe) if f.verdict == "wrong"] == []
