"""Several variants over several seeds as one page: means, intervals, and what separates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from tutelage.reports.charts.chart import Band, Chart, Line, variant_role
from tutelage.reports.charts.drawing import draw
from tutelage.reports.charts.figures import save_figures
from tutelage.reports.compare import ComparedRun, Comparison, Variant
from tutelage.reports.compared_metric import ComparedMetric, compared_metric
from tutelage.reports.measures import duration, measure
from tutelage.reports.page import render, write_page
from tutelage.reports.run_folder import flat
from tutelage.reports.statistics import Verdict

SAID: Mapping[Verdict, str] = {
    "separate": "yes",
    "only alone": "not after correction",
    "not separate": "no",
    "same": "no: the same in every seed",
    "unknown": "too few seeds",
}


def write_comparison(folder: Path) -> Path:
    """Write `compare.html` and `plots/` beside the `compare.json` of a folder.

    Returns:
        The path of the page.

    Raises:
        DataError: there is no compare.json, or it does not hold a comparison.
        OutputError: the folder cannot be written.
    """
    comparison = Comparison.load(folder)
    path = folder / "compare.html"
    write_page(path, comparison_text(comparison))
    save_figures(curve_charts(comparison), folder / "plots")
    return path


def comparison_text(comparison: Comparison) -> str:
    """The page itself."""
    metrics = [compared_metric(comparison, name) for name in comparison.metric_names]
    return render(
        "compare.html.j2",
        comparison=comparison,
        lead=lead(comparison, metrics[0]),
        gaps=missing_seeds(comparison),
        roles={v.name: variant_role(i) for i, v in enumerate(comparison.variants)},
        metrics=metrics,
        panels=[draw(chart) for chart in curve_charts(comparison)],
        settings=settings_that_differ(comparison.variants),
        said=SAID,
        runs=every_run(comparison),
    )


def lead(comparison: Comparison, metric: ComparedMetric) -> list[str]:
    """The result in sentences: the best variant, and what it does and does not beat."""
    num_seeds = max((len(variant.runs) for variant in comparison.variants), default=0)
    if metric.best is None:
        count = f"{len(comparison.variants)} variant{'s' * (len(comparison.variants) != 1)}"
        return [f"{count}, up to {num_seeds} seed{'s' * (num_seeds != 1)} each."]
    mean, half = metric.cells[metric.best]
    word = "lowest" if metric.better == "lower" else "highest"
    label = measure(metric.name).label
    label = label[:1].lower() + label[1:]
    spread = f" ± {half}" if half else ""
    told = [f"{metric.best} has the {word} mean {label}: {mean}{spread}."]
    groups: dict[Verdict, list[str]] = {}
    for pair in metric.pairs:
        if metric.best in (pair.first, pair.second):
            other = pair.second if pair.first == metric.best else pair.first
            groups.setdefault(pair.verdict, []).append(other)
    for verdict, sentence in (
        ("separate", "It separates from {}."),
        ("only alone", "From {} it would separate if no other pair were looked at."),
        ("not separate", "It does not separate from {}."),
        ("same", "In every seed it equals {}."),
        ("unknown", "There are too few seeds to tell it from {}."),
    ):
        if verdict in groups:
            told.append(sentence.format(_listed(groups[verdict])))
    return told


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def missing_seeds(comparison: Comparison) -> list[str]:
    """A sentence for each variant with fewer seeds than were planned, or with a failed run."""
    planned = comparison.num_planned_seeds or max(len(v.runs) for v in comparison.variants)
    first = comparison.metric_names[0]
    told: list[str] = []
    for variant in comparison.variants:
        good = sum(run.final.get(first) is not None for run in variant.runs)
        if good < planned:
            told.append(f"{variant.name} has {good} of {planned} seeds with a finite {first}.")
    return told


def curve_charts(comparison: Comparison) -> list[Chart]:
    """One chart for each metric that was measured on the way."""
    charts = [curve_chart(comparison, name) for name in comparison.metric_names]
    return [chart for chart in charts if not chart.is_empty]


def curve_chart(comparison: Comparison, name: str) -> Chart:
    """The mean over seeds at each step, with the lowest and the highest seed around it."""
    about = measure(name)
    lines: list[Line] = []
    bands: list[Band] = []
    for index, variant in enumerate(comparison.variants):
        role = variant_role(index)
        points = _by_step(variant.runs, name)
        steps = sorted(points)
        if not steps:
            continue
        means = [fmean(points[step]) for step in steps]
        lines.append(Line(name=variant.name, role=role, x=steps, y=means))
        if len(points[steps[0]]) > 1:
            low, high = [min(points[s]) for s in steps], [max(points[s]) for s in steps]
            bands.append(Band(role=role, x=steps, low=low, high=high))
    return Chart(
        key=f"{name}_by_step",
        title=about.label,
        x_label="step",
        y_label=about.unit,
        lines=lines,
        bands=bands,
        unit="percent" if about.is_share else "plain",
        note="Shaded: from the lowest to the highest seed." if bands else "",
    )


def _by_step(runs: Sequence[ComparedRun], name: str) -> dict[float, list[float]]:
    """Step to the values of all seeds; a step that a seed lacks is left out: means would jump."""
    points: dict[float, list[float]] = {}
    for run in runs:
        for point in run.curve:
            step, value = point.get("step"), point.get(name)
            if step is not None and value is not None:
                points.setdefault(step, []).append(value)
    most = max((len(values) for values in points.values()), default=0)
    return {step: values for step, values in points.items() if len(values) == most}


def settings_that_differ(variants: Sequence[Variant]) -> list[tuple[str, list[str]]]:
    """Dotted path to each variant's value, for the settings in which they are not all alike."""
    columns = [flat(variant.settings) for variant in variants]
    paths = sorted({path for column in columns for path in column})
    rows = [(path, [column.get(path, "—") for column in columns]) for path in paths]
    return [(path, row) for path, row in rows if len(set(row)) > 1]


def every_run(comparison: Comparison) -> list[tuple[str, int, list[str]]]:
    """Variant, seed, and all final numbers as text, seconds last."""
    return [
        (
            variant.name,
            run.seed,
            [
                *(measure(name).show(run.final.get(name)) for name in comparison.metric_names),
                duration(run.seconds),
            ],
        )
        for variant in comparison.variants
        for run in variant.runs
    ]
