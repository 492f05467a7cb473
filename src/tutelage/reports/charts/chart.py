"""What a chart shows, apart from how it is drawn: lines, bands, ranges, ticks, colours.

`drawing.py` puts a chart into a page, `figures.py` into a file; both read the same record, so
they cannot disagree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean
from typing import Literal, final

MOST_POINTS = 400
"""More points than this do not fit between the edges of a panel, so lines are thinned to it."""

# Role to its colour in light and in dark; each keeps a contrast of 3 to 1 to its background.
COLOURS: Mapping[str, tuple[str, str]] = {
    "before": ("#6b7280", "#9aa3b2"),
    "distilled": ("#2855d9", "#8fb0ff"),
    "teacher": ("#0b7a5e", "#4fd1ab"),
    "other-1": ("#b85300", "#ffa552"),
    "other-2": ("#9333a8", "#dd9cf0"),
    "other-3": ("#0e7490", "#5cc8e6"),
    "other-4": ("#b3123f", "#ff8fa8"),
    "other-5": ("#5a6b00", "#bccf4a"),
    "other-6": ("#7a4a2a", "#d8a684"),
}
_NUM_OTHERS = 6

# Second sign beside the colour, for print and for readers who see few colours: dash lengths.
_DASHES: Mapping[str, tuple[int, ...]] = {
    "before": (2, 4),
    "teacher": (8, 4),
    "other-1": (7, 3),
    "other-2": (2, 2),
    "other-3": (9, 3, 2, 3),
    "other-4": (4, 2),
    "other-5": (12, 3),
    "other-6": (3, 3, 8, 3),
}


def other_role(index: int) -> str:
    """The colour of the baseline or variant at this place; they repeat when there are many."""
    return f"other-{index % _NUM_OTHERS + 1}"


def variant_role(index: int) -> str:
    """The colour of a variant among equals: the first takes the student's blue."""
    return "distilled" if index % (_NUM_OTHERS + 1) == 0 else other_role(index - 1)


def dashes(role: str) -> tuple[int, ...]:
    """Lengths of ink and gap in pixels; empty for a full line."""
    return _DASHES.get(role, ())


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """One series. A NaN in `y` is a gap."""

    name: str
    role: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    """The raw numbers behind a smoothed line: drawn pale, without a name of its own."""
    level: bool = False
    """One value for the whole width, such as the teacher's perplexity."""


@final
@dataclass(frozen=True, kw_only=True)
class Band:
    """The space between two lines over the same x."""

    role: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@final
@dataclass(frozen=True, kw_only=True)
class Chart:
    """One panel: everything but ink."""

    key: str
    """The name of its file in plots/."""
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    bands: Sequence[Band] = field(default_factory=tuple[Band, ...])
    unit: Literal["plain", "percent"] = "plain"
    log_y: bool = False
    from_zero: bool = False
    """The y axis starts at 0, for quantities where the distance to 0 is the message."""
    note: str = ""

    @property
    def is_empty(self) -> bool:
        """No line has a single number to draw."""
        return not any(math.isfinite(y) for line in self.lines for y in line.y)


@final
@dataclass(frozen=True, kw_only=True)
class Range:
    """The ends of an axis and the values marked on it."""

    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value stands: 0 at the low end, 1 at the high end."""
        if self.log:
            # A number that has no logarithm goes to the bottom edge.
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def x_range(chart: Chart) -> Range:
    """The x axis, from the first to the last point of any line."""
    values = [x for line in chart.lines if not line.level for x in line.x] or [0.0, 1.0]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    # A run that begins at step 1 is easier to read from 0.
    if 0 < low <= 0.1 * (high - low):
        low = 0.0
    return Range(low=low, high=high, ticks=rounded_ticks(low, high))


def y_range(chart: Chart) -> Range:
    """The y axis: all lines and bands with a little air, and marks on round numbers."""
    values = [y for line in chart.lines for y in line.y if math.isfinite(y)]
    values += [y for band in chart.bands for y in (*band.low, *band.high) if math.isfinite(y)]
    if chart.log_y and values and min(values) > 0:
        return _log_range(min(values), max(values))
    if not values:
        return Range(low=0.0, high=1.0, ticks=(0.0, 0.5, 1.0))
    low, high = min(values), max(values)
    if chart.from_zero:
        low, high = min(0.0, low), max(0.0, high)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - (0 if low == 0 and chart.from_zero else air), high + air
    return Range(low=low, high=high, ticks=rounded_ticks(low, high))


def thinned(line: Line, most: int = MOST_POINTS) -> Line:
    """The same line with at most about `most` points; each spike and each gap stays visible.

    Neighbours share a bucket, and a bucket keeps its lowest and its highest point.
    """
    if len(line.x) <= most:
        return line
    size = math.ceil(2 * (len(line.x) - 2) / (most - 2))
    kept = {0, len(line.x) - 1}
    for start in range(1, len(line.x) - 1, size):
        bucket = range(start, min(start + size, len(line.x) - 1))
        finite = [index for index in bucket if math.isfinite(line.y[index])]
        if len(finite) < len(bucket):
            kept.add(next(index for index in bucket if not math.isfinite(line.y[index])))
        if finite:
            kept |= {min(finite, key=line.y.__getitem__), max(finite, key=line.y.__getitem__)}
    order = sorted(kept)
    return replace(line, x=[line.x[i] for i in order], y=[line.y[i] for i in order])


def smoothed(line: Line, *, width: int, most: int = MOST_POINTS) -> Line:
    """The mean of the last points, up to `width` of them, at no more than about `most` places.

    NaNs do not count; a mean of nothing but NaNs is a gap.
    """
    last = len(line.y) - 1
    places = sorted({*range(0, last + 1, math.ceil(len(line.y) / most)), last})
    smooth: list[float] = []
    for place in places:
        window = [y for y in line.y[max(0, place + 1 - width) : place + 1] if math.isfinite(y)]
        smooth.append(fmean(window) if window else math.nan)
    return replace(line, x=[line.x[place] for place in places], y=smooth)


def pieces(line: Line) -> list[list[tuple[float, float]]]:
    """The line as runs of finite points, cut at its gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def rounded_ticks(low: float, high: float, *, about: int = 5) -> tuple[float, ...]:
    """Round numbers inside a range, at a distance of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def _log_range(low: float, high: float) -> Range:
    low, high = low / 1.15, high * 1.15
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [10.0**power * factor for power in powers for factor in factors]
        inside = tuple(tick for tick in ticks if low <= tick <= high)
        if len(inside) <= 7:  # noqa: PLR2004 - more labels would touch each other
            break
    else:
        stride = math.ceil(len(inside) / 7)
        inside = inside[::stride]
    if len(inside) < 2 and math.log10(high / low) < 1:  # noqa: PLR2004 - a scale needs two marks
        inside = rounded_ticks(low, high)
    return Range(low=low, high=high, ticks=inside, log=True)


def bins(
    position: Sequence[float], value: Sequence[float], count: Sequence[float], *, most: int = 40
) -> tuple[list[float], list[float]]:
    """Means over neighbouring positions, so that each point stands for about as many tokens.

    Returns:
        The mean position and the mean value of each bin, both weighted by tokens.
    """
    rows = sorted(
        (p, v, c)
        for p, v, c in zip(position, value, count, strict=True)
        if math.isfinite(v) and c > 0
    )
    enough = sum(c for _, _, c in rows) / most
    starts = [0]
    held = 0.0
    for index, (_, _, c) in enumerate(rows):
        held += c
        if held >= enough:
            starts.append(index + 1)
            held = 0.0
    if starts[-1] < len(rows):
        # Too few tokens are left for a point of their own: they join the last one.
        starts[-1 if len(starts) > 1 else len(starts) :] = [len(rows)]
    groups = [rows[a:b] for a, b in pairwise(starts)]
    weights = [sum(c for _, _, c in group) for group in groups]
    return (
        [sum(p * c for p, _, c in g) / w for g, w in zip(groups, weights, strict=True)],
        [sum(v * c for _, v, c in g) / w for g, w in zip(groups, weights, strict=True)],
    )
