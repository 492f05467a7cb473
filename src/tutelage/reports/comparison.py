"""Several variants over several seeds as one page: means, intervals, and what separates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import final

from tutelage.reports.charts.chart import Band, Chart, Line, Range, rounded_ticks, variant_role
from tutelage.reports.charts.drawing import Tick, axis_text, draw
from tutelage.reports.charts.figures import save_figures
from tutelage.reports.compare import ComparedRun, Comparison, Variant
from tutelage.reports.measures import GAP, duration, measure, percent, plain
from tutelage.reports.page import render, write_page
from tutelage.reports.run_folder import flat
from tutelage.reports.statistics import (
    Difference,
    Interval,
    Verdict,
    difference,
    mean_interval,
    verdicts,
)

Values = Mapping[str, Mapping[int, float]]
"""Variant to seed to final value, finite ones only."""

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


@final
@dataclass(frozen=True, kw_only=True)
class Strip:
    """One variant in a dot plot; places are percent of the width."""

    name: str
    role: str
    seeds: Sequence[float]
    mean: float
    span: tuple[float, float] | None
    """Left edge and width of the interval, cut at the edges of the picture."""
    text: str


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two variants, the one with the smaller mean first."""

    first: str
    second: str
    difference: Difference
    text: str
    interval_text: str
    p_text: str
    verdict: Verdict
    span: tuple[float, float, float] | None
    """Left edge, width and middle of the interval, in percent; None for no number."""
    zero: float
    """Where no difference stands."""


@final
@dataclass(frozen=True, kw_only=True)
class ComparedMetric:
    """One metric over all variants."""

    name: str
    label: str
    meaning: str
    better: str
    cells: Mapping[str, tuple[str, str]]
    """Variant to its mean and to what stands behind ±."""
    intervals: Mapping[str, Interval]
    best: str | None
    strips: Sequence[Strip]
    ticks: Sequence[Tick]
    pairs: Sequence[Pair]
    cut: bool
    """Some interval reaches beyond the picture."""


def compared_metric(comparison: Comparison, name: str) -> ComparedMetric:
    """Means with intervals, the dot plot and every pair, for one metric."""
    about = measure(name)
    values = final_values(comparison, name)
    intervals = {v: mean_interval(list(seeds.values())) for v, seeds in values.items() if seeds}
    ranked = sorted(intervals, key=lambda variant: intervals[variant].mean)
    best = None
    if about.better != "neither" and len(ranked) > 1:
        best = ranked[0] if about.better == "lower" else ranked[-1]
    axis = _strip_range(values)
    unit = "percent" if about.is_share else "plain"
    roles = {variant.name: variant_role(i) for i, variant in enumerate(comparison.variants)}
    return ComparedMetric(
        name=name,
        label=about.axis,
        meaning=about.meaning,
        better=about.better,
        cells={v: _mean_text(name, interval) for v, interval in intervals.items()},
        intervals=intervals,
        best=best,
        strips=[
            _strip(v, roles[v], values[v], intervals[v], axis, name)
            for v in (ranked if about.better != "higher" else reversed(ranked))
        ],
        ticks=[Tick(at=100 * axis.share(x), text=axis_text(x, axis, unit)) for x in axis.ticks],
        pairs=compared_pairs(name, values, ranked),
        cut=any(_reaches_out(interval, axis) for interval in intervals.values()),
    )


def final_values(comparison: Comparison, name: str) -> dict[str, dict[int, float]]:
    """Variant to seed to the final value; a run without a finite one is left out."""
    return {
        variant.name: {
            run.seed: value for run in variant.runs if (value := run.final.get(name)) is not None
        }
        for variant in comparison.variants
    }


def compared_pairs(name: str, values: Values, ranked: Sequence[str]) -> list[Pair]:
    """Every pair of variants that have values, the smaller mean first."""
    pairs = list(combinations(ranked, 2))
    gaps = [difference(values[a], values[b]) for a, b in pairs]
    found = verdicts(gaps)
    axis = _pair_range([gap.interval for gap in gaps])
    return [
        Pair(
            first=a,
            second=b,
            difference=gap,
            text=_signed(name, gap.interval.mean),
            interval_text=_ends_text(name, gap.interval),
            p_text=_p_text(gap.p_value),
            verdict=verdict,
            span=_pair_span(gap.interval, axis),
            zero=100 * axis.share(0.0),
        )
        for (a, b), gap, verdict in zip(pairs, gaps, found, strict=True)
    ]


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


def _mean_text(name: str, interval: Interval) -> tuple[str, str]:
    """The mean, and what stands behind ± with as many decimals."""
    about, half = measure(name), interval.half_width
    mean = about.show(interval.mean)
    if half is None or not math.isfinite(half):
        return mean, ""
    if about.is_share:
        return mean, percent(half)
    _, point, decimals = mean.partition(".")
    plainly = point and decimals.isdigit()
    return mean, f"{half:.{len(decimals)}f}" if plainly else about.show(half)


def _signed(name: str, value: float) -> str:
    if measure(name).is_share:
        # A difference of two shares is in percentage points.
        return f"{100 * value:+.2f}{GAP}pp".replace("-", "−")  # noqa: RUF001 - a true minus
    text = plain(value)
    return f"+{text}" if value > 0 else text


def _ends_text(name: str, interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "—"
    return f"{_signed(name, interval.low)} to {_signed(name, interval.high)}"


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return "—"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"  # noqa: PLR2004 - what a reader needs


def _strip_range(values: Values) -> Range:
    """All seeds, with as much room on both sides as they need themselves, for the intervals."""
    every = [value for seeds in values.values() for value in seeds.values()]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    air = (high - low) * 0.5 or 0.1 * abs(high) or 1.0
    intervals = [mean_interval(list(seeds.values())) for seeds in values.values() if seeds]
    ends = [
        end for interval in intervals for end in (interval.low, interval.high) if end is not None
    ]
    margin = (high - low) * 0.04 or air
    low, high = (
        max(low - air, min([*ends, low]) - margin),
        min(high + air, max([*ends, high]) + margin),
    )
    return Range(low=low, high=high, ticks=rounded_ticks(low, high, about=5))


def _reaches_out(interval: Interval, axis: Range) -> bool:
    if interval.low is None or interval.high is None:
        return False
    return interval.low < axis.low or interval.high > axis.high


def _strip(
    variant: str,
    role: str,
    seeds: Mapping[int, float],
    interval: Interval,
    axis: Range,
    metric: str,
) -> Strip:
    span = None
    if interval.low is not None and interval.high is not None:
        left = 100 * max(0.0, axis.share(interval.low))
        span = (left, 100 * min(1.0, axis.share(interval.high)) - left)
    mean, half = _mean_text(metric, interval)
    return Strip(
        name=variant,
        role=role,
        seeds=[100 * axis.share(value) for value in seeds.values()],
        mean=100 * axis.share(interval.mean),
        span=span,
        text=f"mean {mean}{f' ± {half}' if half else ''}, {len(seeds)} seeds",
    )


def _pair_range(intervals: Sequence[Interval]) -> Range:
    """All differences and no difference, and as much of the intervals as leaves them apart."""
    means = [0.0, *(interval.mean for interval in intervals)]
    low, high = min(means), max(means)
    # With two seeds an interval is a dozen times its difference: it is cut.
    air = (high - low) or 1.0
    lows = [interval.low for interval in intervals if interval.low is not None]
    highs = [interval.high for interval in intervals if interval.high is not None]
    low, high = max(low - air, min([low, *lows])), min(high + air, max([high, *highs]))
    margin = 0.04 * (high - low) or 1.0
    return Range(low=low - margin, high=high + margin, ticks=())


def _pair_span(interval: Interval, axis: Range) -> tuple[float, float, float] | None:
    def place(value: float) -> float:
        return 100 * max(0.0, min(1.0, axis.share(value)))

    if not math.isfinite(interval.mean):
        return None
    low = interval.mean if interval.low is None else interval.low
    high = interval.mean if interval.high is None else interval.high
    return place(low), place(high) - place(low), place(interval.mean)
