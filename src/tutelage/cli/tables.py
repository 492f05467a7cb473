"""Tables of results and findings, for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tutelage import recipes

if TYPE_CHECKING:
    # Only for its type: importing it would import matplotlib before `--help` is out.
    from tutelage.reports import Comparison

_COLUMNS = (
    ("reward", "reward", ".3f"),
    ("perplexity", "perplexity", ".2f"),
    ("bits_per_byte", "bits/byte", ".3f"),
    ("aligned_kl", "aligned KL", ".3f"),
    ("forward_kl", "forward KL", ".3f"),
    ("written_forward_kl", "KL, own text", ".3f"),
    ("top1_agreement", "top-1 agreement", ".3f"),
    ("num_parameters", "parameters", "M"),
    ("tokens_per_second", "tokens/s", ".0f"),
)
_OPTIONAL = {"reward", "bits_per_byte", "aligned_kl", "written_forward_kl"}
"""Columns that are there only where something was found."""
_MOST_FRAMED = 6
"""More columns than these fit into 80 characters only without a frame around every cell."""


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The rows of `summary.json`: before, each baseline, distilled, teacher."""
    rows: Sequence[Mapping[str, Any]] = summary["rows"]
    table = Table(title=str(summary.get("title", "")), title_justify="left")
    table.add_column("")
    columns = [
        column
        for column in _COLUMNS
        if column[0] not in _OPTIONAL or any(column[0] in row for row in rows)
    ]
    tight = len(columns) > _MOST_FRAMED
    if tight:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    for _, title, _ in columns:
        table.add_column("\n".join(title.rsplit(" ", 1)) if tight else title, justify="right")
    for row in rows:
        name = str(row["name"])
        numbers = [_number(row.get(key), form) for key, _, form in columns]
        table.add_row(
            name.replace("_", " "), *numbers, style="bold" if name == "distilled" else None
        )
    return table


def comparison_table(comparison: "Comparison") -> Table:
    """One line a variant: the mean of each metric over the seeds, and its 95 % interval."""
    table = Table(title=comparison.title, title_justify="left")
    table.add_column("")
    for name in comparison.metric_names:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("seeds", justify="right")
    for variant in comparison.variants:
        cells: list[str] = []
        for name in comparison.metric_names:
            values = [v for run in variant.runs if (v := run.final.get(name)) is not None]
            cells.append(_mean(values))
        table.add_row(variant.name, *cells, str(len(variant.runs)))
    return table


def count_in_short(count: int | float) -> str:
    """Parameters in millions, from a tenth of one on."""
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,.0f}"  # noqa: PLR2004 - 0.1 M


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = recipes.mean_and_half_width(values)
    return f"{mean:.4g}" if half is None else f"{mean:.4g} ± {half:.2g}"


def _number(value: int | float | None, form: str) -> str:
    if value is None:
        return "-"
    if form == "M":
        return count_in_short(value)
    return f"{value:,{form}}"
