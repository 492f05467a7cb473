"""The door to matplotlib: charts as files, one SVG and one PNG each, for papers and slides."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from tutelage.reports.charts.chart import COLOURS, Chart, dashes, pieces, x_range, y_range
from tutelage.reports.charts.drawing import axis_text
from tutelage.reports.heat_map import SCALE, SHADES, HeatMap, shade

_INK = "#1c1f26"
_GRID = "#dfe2e8"
_IDLE, _PAPER, _BUSY = "#0d9488", "#f7f7f5", "#ea580c"
_WIDTH, _HEIGHT = 5.4, 3.4


def save_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write each chart as `<key>.svg` and `<key>.png`, in light colours."""
    if charts:
        folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for chart in charts:
        figure = _figure(chart)
        for ending in ("svg", "png"):
            path = folder / f"{chart.key}.{ending}"
            # A name in a script that the built-in font lacks shows as boxes; it stops no report.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing")
                figure.savefig(path, dpi=160, metadata={"Date": None} if ending == "svg" else None)
            written.append(path)
    return written


def save_heat_maps(maps: Sequence[HeatMap], folder: Path) -> list[Path]:
    """Write each map as `expert_load_layer_<n>.svg` and `.png`, in light colours."""
    written: list[Path] = []
    for one in maps:
        folder.mkdir(parents=True, exist_ok=True)
        figure = _heat_figure(one)
        for ending in ("svg", "png"):
            path = folder / f"expert_load_layer_{one.layer + 1}.{ending}"
            figure.savefig(path, dpi=160, metadata={"Date": None} if ending == "svg" else None)
            written.append(path)
    return written


def _heat_figure(one: HeatMap) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.1, 0.15, 0.72, 0.74))
    colours = LinearSegmentedColormap.from_list("load", (_IDLE, _PAPER, _BUSY), N=2 * SHADES + 1)
    levels = [[shade(share) for share in row] for row in one.shares]
    image = ax.imshow(
        levels, cmap=colours, vmin=-SHADES - 0.5, vmax=SHADES + 0.5, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    places = sorted({0, len(one.steps) // 2, len(one.steps) - 1})
    _mark_axes(ax.xaxis, [float(at) for at in places], [str(one.steps[at]) for at in places])
    ax.tick_params(length=0, labelsize=9, colors=_INK)
    ax.set_title(f"Expert load, {one.title}", loc="left", fontsize=11, color=_INK)
    ax.set_xlabel("step", fontsize=9, color=_INK)
    ax.set_ylabel("expert", fontsize=9, color=_INK)
    bar = figure.colorbar(image, ax=ax, ticks=[at for at, _ in SCALE])
    bar.ax.set_yticklabels([text for _, text in SCALE], fontsize=8)
    return figure


def _figure(chart: Chart) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    FigureCanvasAgg(figure)
    # Fixed margins: finding the tightest ones would take as long as all the drawing.
    ax = figure.add_axes((0.14, 0.15, 0.82, 0.74))
    across, up = x_range(chart), y_range(chart)
    for band in chart.bands:
        colour = COLOURS[band.role][0]
        ax.fill_between(band.x, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
    for line in chart.lines:
        name = "_" if line.faint else line.name
        for part in pieces(line):
            xs, ys = zip(*part, strict=True)
            lengths = dashes(line.role)
            ax.plot(
                xs,
                ys,
                color=COLOURS[line.role][0],
                alpha=0.25 if line.faint else 1,
                linewidth=1.0 if line.faint else 1.7,
                linestyle=(0, lengths) if lengths and not line.faint else "solid",
                marker="o" if len(part) == 1 else None,
                markersize=3.5,
                label=name,
            )
            name = "_"
    if up.log:
        ax.set_yscale("log")
    ax.set_xlim(across.low, across.high)
    ax.set_ylim(up.low, up.high)
    _mark_axes(ax.xaxis, across.ticks, [axis_text(x, across) for x in across.ticks])
    _mark_axes(ax.yaxis, up.ticks, [axis_text(y, up, chart.unit) for y in up.ticks])
    ax.grid(visible=True, color=_GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0, labelsize=9, colors=_INK)
    # What people named is text: a dollar sign in it starts no formula.
    ax.set_title(chart.title, loc="left", fontsize=11, color=_INK, parse_math=False)
    ax.set_xlabel(chart.x_label, fontsize=9, color=_INK, parse_math=False)
    ax.set_ylabel(chart.y_label, fontsize=9, color=_INK, parse_math=False)
    if sum(not line.faint for line in chart.lines) > 1:
        legend = ax.legend(frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _mark_axes(axis: object, places: Sequence[float], texts: Sequence[str]) -> None:
    axis.set_major_locator(FixedLocator(places))  # pyright: ignore[reportAttributeAccessIssue]
    axis.set_major_formatter(FixedFormatter(texts))  # pyright: ignore[reportAttributeAccessIssue]
    axis.set_minor_locator(NullLocator())  # pyright: ignore[reportAttributeAccessIssue]
