"""Every argument of every word reaches what the word does."""

import json
from pathlib import Path

import pytest
import typer

from tests.cli.conftest import FAST, Words
from tutelage.cli.console import told_in_one_line
from tutelage.cli.tables import comparison_table
from tutelage.reports import ComparedRun, Comparison, Variant


def last_line(tutelage: Words, *words: str, code: int) -> str:
    result = tutelage(*words)
    assert result.exit_code == code, result.output
    return result.stderr.splitlines()[-1]


def test_demo_is_train_demo_with_all_its_arguments(tutelage: Words, tmp_path: Path) -> None:
    assert "Did you mean num_steps?" in last_line(tutelage, "demo", "training.num_stps=1", code=2)
    assert "no run to go on with" in last_line(tutelage, "demo", "output=new", "--resume", code=5)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    words = ("demo", "output=thesis", "--overwrite")
    assert "no run of ours wrote" in last_line(tutelage, *words, code=7)


def test_train_goes_on_and_overwrites_where_asked(tutelage: Words) -> None:
    words = ("train", "tiny", *FAST, "baselines={}")
    assert tutelage(*words).exit_code == 0
    log = Path("runs/tiny/metrics.jsonl")
    written = log.stat().st_mtime_ns
    assert tutelage(*words, "--resume").exit_code == 0
    assert log.stat().st_mtime_ns == written
    assert tutelage(*words, "--overwrite").exit_code == 0
    assert log.stat().st_mtime_ns != written


def test_eval_hears_recipe_overrides_and_teacher(tutelage: Words) -> None:
    assert tutelage("train", "tiny", *FAST, "baselines={}").exit_code == 0
    run = "runs/tiny"
    assert "Did you mean tiny?" in last_line(tutelage, "eval", run, "tinny", code=2)
    nothing = ("evaluation.num_rows=0", "training.evaluate_every=null")
    assert "num_rows is 0" in last_line(tutelage, "eval", run, "tiny", *nothing, code=2)
    alone = tutelage("eval", run, "--teacher", "none")
    assert alone.exit_code == 0
    assert "teacher" not in alone.stdout


def test_compare_hears_overrides_seeds_rates_and_folder(tutelage: Words) -> None:
    rates = ("--learning-rates", "1e-3,1e-2")
    words = ("compare", "tiny", *FAST, "baselines={}", "--seeds", "1", *rates, "-o", "out")
    result = tutelage(*words)
    assert result.exit_code == 0, result.output
    assert set(json.loads(Path("out/tuned.json").read_text())["tiny"]["tried"]) == {"0.001", "0.01"}
    (variant,) = json.loads(Path("out/compare.json").read_text())["variants"]
    assert variant["settings"]["training"]["num_steps"] == 4
    assert len(variant["runs"]) == 1
    assert tutelage("compare", "tiny", "--learning-rates", "soon").exit_code == 2


def test_doctor_and_show_hear_overrides(tutelage: Words) -> None:
    assert "seed: 77" in tutelage("show", "tiny", "seed=77").stdout
    assert tutelage("doctor", "tiny", "student.keep_layers=9").exit_code == 1


def test_a_comparison_shows_the_mean_over_the_seeds_of_each_variant() -> None:
    def variant(name: str, *values: float) -> Variant:
        runs = [
            ComparedRun(seed=seed, final={"forward_kl": value}, curve=[], seconds=1.0)
            for seed, value in enumerate(values)
        ]
        return Variant(name=name, settings={}, runs=runs)

    comparison = Comparison(
        title="two",
        metric_names=["forward_kl"],
        variants=[variant("a", 1.0, 3.0), variant("b", 10.0, 20.0, 30.0)],
        notes=[],
    )
    names, means, seeds = (
        [str(cell).split(" ")[0] for cell in column.cells]
        for column in comparison_table(comparison).columns
    )
    assert (names, means, seeds) == (["a", "b"], ["2", "20"], ["2", "3"])


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (ZeroDivisionError("x"), 1)]
)
def test_what_nobody_expected_has_a_code_too(error: BaseException, code: int) -> None:
    @told_in_one_line
    def word() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        word()
    assert caught.value.exit_code == code
