"""A chart as geometry for a page: shares of a box, paths, labels and the data behind them.

The box is stretched to whatever width the reader has, while strokes and letters keep their size:
labels are HTML beside the drawing, not letters inside it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup

from tutelage.reports.charts.chart import Band, Chart, Line, Range, dashes, pieces, x_range, y_range
from tutelage.reports.measures import percent, plain

_BOX = 1000
_FEW = 40
"""Up to this many points, each one gets a dot."""


@final
@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis: where it stands, in percent, and what it says."""

    at: float
    text: str


@final
@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One line as SVG paths: the line itself, and the dots on it."""

    role: str
    path: str
    dots: str
    dashes: str
    faint: bool


@final
@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart, ready for the template."""

    chart: Chart
    alternative: str
    """What the chart shows, in words, for those who cannot see it."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    strokes: Sequence[Stroke]
    bands: Sequence[tuple[str, str]]
    """Role and closed path."""
    legend: Sequence[tuple[str, str, str]]
    """Name, role and dashes of each line."""
    data: Markup
    """JSON for the read-out under the pointer."""


def draw(chart: Chart) -> Drawing:
    """Turn a chart into geometry."""
    across, up = x_range(chart), y_range(chart)
    named = [line for line in chart.lines if not line.faint]
    return Drawing(
        chart=chart,
        alternative=_in_words(chart, named),
        x_ticks=[Tick(at=100 * across.share(x), text=axis_text(x, across)) for x in across.ticks],
        y_ticks=[
            Tick(at=100 - 100 * up.share(y), text=axis_text(y, up, chart.unit)) for y in up.ticks
        ],
        strokes=[
            # Among many lines dots are clutter.
            _stroke(line, across, up, dots=len(named) < 4)  # noqa: PLR2004
            for line in chart.lines
        ],
        bands=[(band.role, _band(band, across, up)) for band in chart.bands],
        legend=[(line.name, line.role, _dash_text(line.role)) for line in named],
        data=safe_json(
            {
                "x": [across.low, across.high],
                "y": [up.low, up.high],
                "log": up.log,
                "unit": chart.unit,
                "xLabel": chart.x_label,
                "lines": [
                    {
                        "name": line.name,
                        "role": line.role,
                        "x": [_short(x) for x in line.x],
                        "y": [_short(y) for y in line.y],
                    }
                    for line in named
                ],
            }
        ),
    )


def axis_text(value: float, axis: Range, unit: str = "plain") -> str:
    """The label of a tick, with as many decimals as its neighbours need to differ."""
    gaps = [b - a for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)] or [abs(value) or 1.0]
    gap = min(gaps) * (100 if unit == "percent" else 1)
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    if unit == "percent":
        return percent(value, digits=decimals)
    size = max(abs(tick) for tick in axis.ticks)
    if axis.log or (size and not 1e-4 < size < 1e6):  # noqa: PLR2004 - a label has seven letters
        return plain(value, digits=1) if axis.log and 1 <= value < 1e6 else _scientific(value)  # noqa: PLR2004
    return f"{value:,.{decimals}f}".replace("-", "−")  # noqa: RUF001 - a true minus


def _scientific(value: float) -> str:
    text = f"{value:.3g}"
    if "e" not in text and 1e-3 <= abs(value) < 1e4:  # noqa: PLR2004 - short enough as it is
        return text
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    shown = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"
    return shown.replace("-", "−")  # noqa: RUF001 - a true minus


def safe_json(value: object) -> Markup:
    """JSON that cannot end the script element it stands in; a NaN becomes null."""
    text = json.dumps(_without_nan(value), ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - every letter that HTML gives a meaning was replaced above


def _without_nan(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _without_nan(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_nan(each) for each in value]
        case _:
            return value


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _place(x: float, y: float, across: Range, up: Range) -> str:
    return f"{_BOX * across.share(x):.1f} {_BOX - _BOX * up.share(y):.1f}"


def _stroke(line: Line, across: Range, up: Range, *, dots: bool) -> Stroke:
    parts = pieces(line)
    paths = [
        "M" + "L".join(_place(x, y, across, up) for x, y in part) for part in parts if len(part) > 1
    ]
    points = [point for part in parts for point in part]
    dotted = points if dots and len(points) <= _FEW and not line.level else _alone(parts)
    return Stroke(
        role=line.role,
        path="".join(paths),
        dots="".join(f"M{_place(x, y, across, up)}h0" for x, y in dotted),
        dashes=_dash_text(line.role),
        faint=line.faint,
    )


def _alone(parts: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Points between two gaps: no line leads to them, so they are drawn as dots."""
    return [part[0] for part in parts if len(part) == 1]


def _band(band: Band, across: Range, up: Range) -> str:
    edge = [(x, y) for x, y in zip(band.x, band.high, strict=True) if math.isfinite(y)]
    back = [(x, y) for x, y in zip(band.x, band.low, strict=True) if math.isfinite(y)]
    corners = [_place(x, y, across, up) for x, y in (*edge, *reversed(back))]
    return f"M{'L'.join(corners)}Z" if corners else ""


def _dash_text(role: str) -> str:
    return " ".join(str(length) for length in dashes(role))


def _in_words(chart: Chart, lines: Sequence[Line]) -> str:
    show = percent if chart.unit == "percent" else plain
    told: list[str] = []
    for line in lines:
        points = [point for part in pieces(line) for point in part]
        if not points:
            continue
        (x0, y0), (x1, y1) = points[0], points[-1]
        told.append(
            f"{line.name} {show(y0)} throughout"
            if line.level
            else f"{line.name} from {show(y0)} at {plain(x0)} to {show(y1)} at {plain(x1)}"
        )
    unit = f" ({chart.y_label})" if chart.y_label else ""
    return f"{chart.title}{unit} by {chart.x_label}: {'; '.join(told)}."
