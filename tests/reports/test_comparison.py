"""compare.json and its page."""

from pathlib import Path

import pytest

from tests.reports.made_up import make_comparison
from tests.reports.test_page import HOSTILE, Reader
from tutelage.core.errors import DataError, OutputError
from tutelage.reports import ComparedRun, Comparison, Variant, write_comparison
from tutelage.reports.compared_metric import compared_metric
from tutelage.reports.comparison import (
    comparison_text,
    curve_chart,
    lead,
    missing_seeds,
    settings_that_differ,
)


def variant(name: str, *finals: float | None, settings: dict | None = None) -> Variant:
    runs = [
        ComparedRun(seed=seed, final={"forward_kl": value}, seconds=1.0)
        for seed, value in enumerate(finals)
    ]
    return Variant(name=name, settings=settings or {}, runs=runs)


def comparison_of(*variants: Variant) -> Comparison:
    return Comparison(title="t", metric_names=["forward_kl"], variants=list(variants))


def whole(variants: str) -> str:
    return f'{{"title": "t", "metric_names": ["m"], "variants": [{variants}]}}'


def test_a_comparison_survives_its_file(tmp_path: Path) -> None:
    comparison = make_comparison()
    comparison.save(tmp_path / "new")
    assert Comparison.load(tmp_path / "new") == comparison
    assert not list((tmp_path / "new").glob("*.partial"))


def test_numbers_that_are_not_finite_become_none(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(
        '{"title": "t", "metric_names": ["m"], "variants": [{"name": "a", "runs": '
        '[{"seed": 0, "final": {"m": NaN}, "curve": [{"step": 1, "m": Infinity}]}]}]}',
        encoding="utf-8",
    )
    (run,) = Comparison.load(tmp_path).variants[0].runs
    assert run.final == {"m": None}
    assert run.curve == [{"step": 1.0, "m": None}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"title": "t"', "Invalid JSON"),
        ('{"title": "t", "metric_names": [], "variants": []}', "metric_names"),
        ('{"title": "t", "metric_names": ["m"], "variants": [], "x": 1}', "variants"),
        (
            whole('{"name": "a", "runs": [{"seed": 0, "final": {}, "curve": [{"m": 1}]}]}'),
            r"curve\[0\] has no step",
        ),
        (
            whole('{"name": "a"}, {"name": "a"}'),
            "every name must be unique",
        ),
        (
            whole('{"name": "a", "runs": [{"seed": 0, "final": {}}, {"seed": 0, "final": {}}]}'),
            "each may appear once",
        ),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "compare.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Comparison.load(tmp_path)


def test_a_missing_file_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tutelage compare"):
        write_comparison(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match=r"compare\.json cannot be written"):
        make_comparison().save(tmp_path / "file")


def test_the_page_holds_means_pictures_pairs_and_settings(tmp_path: Path) -> None:
    make_comparison().save(tmp_path)
    page = write_comparison(tmp_path)
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert reader.open == []
    assert reader.count("caption") == reader.count("table")
    assert "csd_ts has the lowest mean forward KL" in text
    assert "objective.kind" in text
    assert "training.learning_rate" not in text
    assert (tmp_path / "plots" / "forward_kl_by_step.png").is_file()


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    first = variant(HOSTILE, 1.0, 2.0, settings={HOSTILE: HOSTILE})
    comparison = Comparison(
        title=HOSTILE,
        metric_names=["forward_kl", HOSTILE.replace("/", "")],
        variants=[first, variant("b", 1.5, 2.5)],
        notes=[HOSTILE],
    )
    comparison.save(tmp_path)
    reader = Reader(write_comparison(tmp_path).read_text(encoding="utf-8"))
    assert reader.open == []
    assert reader.count("img") == 0
    assert sum(tag == "script" and "type" not in a for tag, a in reader.tags) == 1


@pytest.mark.parametrize(
    "comparison",
    [
        comparison_of(variant("alone")),
        comparison_of(variant("alone", 1.0)),
        comparison_of(variant("a", 1.0), variant("b", 2.0)),
        comparison_of(variant("a", None, None), variant("b", 2.0, 2.0, 2.0)),
        comparison_of(variant("a", 0.0, 0.0), variant("b", 0.0, 0.0)),
        comparison_of(variant("a", -1e30, 1e30), variant("b", 1e-30, 2e-30)),
    ],
    ids=["no run", "one run", "one seed", "all failed", "all zero", "far apart"],
)
def test_degenerate_comparisons_still_make_a_page(comparison: Comparison) -> None:
    text = comparison_text(comparison)
    assert Reader(text).open == []
    assert "nan%" not in text


def test_the_lead_says_what_the_best_variant_beats_and_what_not() -> None:
    comparison = make_comparison()
    said = lead(comparison, compared_metric(comparison, "forward_kl"))
    assert said[0].startswith("csd_ts has the lowest mean forward KL: 0.938 ± 0.07")
    assert "It separates from reverse_kl, csd_ss and cross_entropy." in said
    assert "From taid and forward_kl it would separate if no other pair were looked at." in said


def test_the_same_objective_under_two_names_is_the_same_in_every_seed() -> None:
    metric = compared_metric(make_comparison(), "forward_kl")
    verdict = {(p.first, p.second): p.verdict for p in metric.pairs}
    assert verdict["reverse_kl", "csd_ss"] == "same"


def test_where_higher_is_better_the_highest_mean_is_best_and_on_top() -> None:
    metric = compared_metric(make_comparison(), "top1_agreement")
    assert metric.best == "csd_ts"
    assert metric.strips[0].name == "csd_ts"
    assert metric.pairs[0].text.endswith("\u00a0pp")


def test_a_metric_nobody_described_has_no_best() -> None:
    runs = [ComparedRun(seed=0, final={"odd": 1.0})]
    variants = [Variant(name=name, runs=runs) for name in "ab"]
    comparison = Comparison(title="t", metric_names=["odd"], variants=variants)
    metric = compared_metric(comparison, "odd")
    assert metric.best is None
    assert lead(comparison, metric) == ["2 variants, up to 1 seed each."]


def test_missing_and_failed_seeds_are_told() -> None:
    comparison = comparison_of(variant("a", 1.0, 2.0, 3.0), variant("b", 1.0, None, 3.0))
    assert missing_seeds(comparison) == ["b has 2 of 3 seeds with a finite forward_kl."]
    planned = comparison.model_copy(update={"num_planned_seeds": 4})
    assert len(missing_seeds(planned)) == 2


def test_curves_show_the_mean_of_all_seeds_and_their_ends() -> None:
    def run(seed: int, *values: float) -> ComparedRun:
        curve = [{"step": float(step), "forward_kl": v} for step, v in enumerate(values)]
        return ComparedRun(seed=seed, final={}, curve=curve)

    # The second seed stopped early: a step with one seed alone would make the mean jump.
    runs = [run(0, 4.0, 2.0, 1.0), run(1, 6.0, 3.0)]
    comparison = comparison_of(Variant(name="a", runs=runs))
    chart = curve_chart(comparison, "forward_kl")
    assert list(chart.lines[0].x) == [0.0, 1.0]
    assert list(chart.lines[0].y) == [5.0, 2.5]
    assert (chart.bands[0].low, chart.bands[0].high) == ([4.0, 2.0], [6.0, 3.0])


def test_only_settings_that_differ_are_listed() -> None:
    variants = [
        variant("a", settings={"x": {"y": 1}, "same": 3}),
        variant("b", settings={"x": {"y": 2}, "same": 3, "only_b": True}),
    ]
    assert settings_that_differ(variants) == [("only_b", ["—", "True"]), ("x.y", ["1", "2"])]


def test_intervals_wider_than_the_picture_are_cut_and_said_to_be() -> None:
    metric = compared_metric(
        comparison_of(variant("a", 1.0, 2.0), variant("b", 1.1, 2.1)), "forward_kl"
    )
    assert metric.cut
    for strip in metric.strips:
        left, width = strip.span
        assert left >= 0
        assert left + width <= 100 + 1e-9
    for pair in metric.pairs:
        assert all(-1e-9 <= place <= 100 + 1e-9 for place in pair.span)
