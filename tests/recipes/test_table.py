"""Which number stands in which row: of a run, of a saved student, of a comparison."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.conftest import FAST
from tutelage.cli.tables import summary_table
from tutelage.core.errors import ConfigError
from tutelage.recipes.compare import Plan, compare_recipes
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.rows import prepare_rows
from tutelage.recipes.run import Outcome, evaluate_folder, run_recipe
from tutelage.recipes.toy import byte_tokenizer


def tiny(folder: Path, *overrides: str) -> Recipe:
    return load("tiny", [*FAST, f"output={folder}", *overrides])


def evaluations(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["phase"] == "eval"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("table") / "run"
    return run_recipe(tiny(folder, "training.evaluate_every=2"))


def test_each_row_of_a_run_is_of_its_own_model_at_its_own_time(run: Outcome) -> None:
    rows = {row["name"]: row["forward_kl"] for row in run.summary["rows"]}
    own = [line["forward_kl"] for line in evaluations(run.folder)]
    other = [line["forward_kl"] for line in evaluations(run.folder / "baselines" / "cross_entropy")]
    # Before, in the middle and after, all different: nothing is remembered over a step.
    assert len(set(own)) == len(own) == 3
    assert rows["before"] == own[0] == other[0]
    assert rows["distilled"] == own[-1]
    assert rows["cross_entropy"] == other[-1]
    assert rows["teacher"] == 0
    assert len(set(rows.values())) == 4


def test_samples_and_tokens_are_of_held_out_rows(run: Outcome) -> None:
    rows = [
        json.loads(line)
        for line in (run.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    kept = prepare_rows(load("tiny", FAST), byte_tokenizer()).held_out[0]
    text = byte_tokenizer().decode(kept.completion_ids, skip_special_tokens=True)
    assert {row["reference"].strip() for row in rows} == {text.strip()}


def test_a_saved_student_is_measured_and_not_the_one_its_recipe_starts_from(run: Outcome) -> None:
    before, _, distilled, _ = (row["forward_kl"] for row in run.summary["rows"])
    baseline = run.folder / "baselines" / "cross_entropy"
    other = next(r for r in run.summary["rows"] if r["name"] == "cross_entropy")["forward_kl"]
    assert evaluate_folder(run.folder)["rows"][0]["forward_kl"] == pytest.approx(distilled)
    assert evaluate_folder(baseline)["rows"][0]["forward_kl"] == pytest.approx(other)
    assert before != pytest.approx(distilled)


def test_another_teacher_and_other_rows_may_be_named_for_a_saved_student(run: Outcome) -> None:
    itself = evaluate_folder(run.folder, teacher=str(run.student))["rows"]
    assert [row["name"] for row in itself] == ["student", "teacher"]
    assert itself[0]["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert itself[0]["top1_agreement"] == 1
    four, nine = (
        evaluate_folder(run.folder, "tiny", overrides=[*FAST, f"evaluation.num_rows={num}"])
        for num in (4, 9)
    )
    assert four["rows"][0]["forward_kl"] == evaluate_folder(run.folder)["rows"][0]["forward_kl"]
    assert nine["rows"][0]["forward_kl"] != four["rows"][0]["forward_kl"]


def test_a_saved_student_is_measured_on_what_it_writes_where_that_is_asked(run: Outcome) -> None:
    asked = ["evaluation.written_rows=2", "rollouts.max_completion_tokens=4"]
    (row, _) = evaluate_folder(run.folder, overrides=asked)["rows"]
    assert row["written_forward_kl"] > 0
    assert 0 < row["written_tokens"] <= 4
    assert "written_forward_kl" not in evaluate_folder(run.folder)["rows"][0]
    (alone,) = evaluate_folder(run.folder, overrides=asked, teacher="none")["rows"]
    assert alone["written_tokens"] == row["written_tokens"]
    shown = Console(width=120, file=io.StringIO(), record=True)
    shown.print(summary_table({"rows": [row]}))
    assert "KL, own text" in shown.export_text()


@pytest.mark.parametrize("written", [False, True])
def test_a_table_fits_into_80_characters(*, written: bool) -> None:
    row = {"perplexity": 54_202.06, "forward_kl": 1.9, "top1_agreement": 0.4}
    row |= {"num_parameters": 1_102_700_000, "tokens_per_second": 12_744.0}
    row |= {"reward": 0.3, "written_forward_kl": 0.6} if written else {}
    rows = [{"name": name, **row} for name in ("before", "cross_entropy", "distilled")]
    shown = Console(width=80, file=io.StringIO(), record=True)
    shown.print(summary_table({"rows": rows}))
    text = shown.export_text()
    assert "…" not in text
    for title in ("perplexity", "agreement", "parameters", "tokens/s", "54,202.06", "1,102.7 M"):
        assert title in text


def test_measuring_on_no_row_is_refused(run: Outcome, tmp_path: Path) -> None:
    none = ["evaluation.num_rows=0", "training.evaluate_every=null"]
    with pytest.raises(ConfigError, match=r"evaluation\.num_rows is 0; it must be 1 or more"):
        evaluate_folder(run.folder, overrides=none)
    with pytest.raises(ConfigError, match=r"evaluation\.num_rows is 0 in tiny"):
        compare_recipes(Plan.of([tiny(tmp_path, *none)], num_seeds=1), tmp_path / "out")


def test_seeds_of_a_comparison_follow_the_recipes_and_each_trains_otherwise(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "unused", "name=one", "seed=5")
    comparison, _ = compare_recipes(Plan.of([recipe], num_seeds=2), tmp_path / "out")
    runs = comparison.variants[0].runs
    assert [run.seed for run in runs] == [5, 6]
    assert runs[0].final["forward_kl"] != runs[1].final["forward_kl"]
    for one in runs:
        folder = tmp_path / "out" / "runs" / "one" / f"seed-{one.seed}"
        assert load(str(folder / "recipe.yaml")).seed == one.seed
        measured = evaluations(folder)
        assert one.final["forward_kl"] == measured[-1]["forward_kl"]
        assert [point["forward_kl"] for point in one.curve] == [
            line["forward_kl"] for line in measured
        ]
        # Only what the page needs: no weights, and no baseline was trained.
        assert not (folder / "student" / "model.safetensors").exists()
        assert not (folder / "baselines").exists()


def test_students_of_a_comparison_are_kept_where_asked(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "unused", "name=one", "baselines={}")
    plan = Plan(title="t", variants={"one": recipe}, seeds=(0,), keep_students=True)
    compare_recipes(plan, tmp_path / "out")
    assert list((tmp_path / "out").rglob("student/model.safetensors"))


def test_recipes_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="each with a name of its own"):
        Plan.of([load("tiny"), load("tiny")], num_seeds=1)


def test_a_folder_may_name_the_seed() -> None:
    assert load("tiny", ["seed=7", "output=runs/{name}-{seed}"]).folder == "runs/tiny-7"
