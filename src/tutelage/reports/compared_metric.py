"""One metric over all variants: means with intervals, a dot plot, and every pair."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import final

from tutelage.reports.charts.chart import Range, rounded_ticks, variant_role
from tutelage.reports.charts.drawing import Tick, axis_text
from tutelage.reports.compare import Comparison
from tutelage.reports.measures import GAP, measure, percent, plain
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
