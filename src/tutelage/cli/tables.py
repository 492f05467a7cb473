"""Tables of results and findings, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

_COLUMNS = (
    ("perplexity", "perplexity", ".2f"),
    ("forward_kl", "forward KL", ".3f"),
    ("top1_agreement", "top-1 agreement", ".3f"),
    ("num_parameters", "parameters", "M"),
    ("tokens_per_second", "tokens/s", ".0f"),
)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The rows of `summary.json`: before, each baseline, distilled, teacher."""
    rows: Sequence[Mapping[str, Any]] = summary["rows"]
    table = Table(title=str(summary.get("title", "")), title_justify="left")
    table.add_column("")
    for _, title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for row in rows:
        name = str(row["name"])
        numbers = [_number(row.get(key), form) for key, _, form in _COLUMNS]
        table.add_row(
            name.replace("_", " "), *numbers, style="bold" if name == "distilled" else None
        )
    return table


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    if form == "M":
        return f"{value / 1e6:.1f} M" if value >= 1e5 else f"{value:,.0f}"  # noqa: PLR2004 - 0.1 M
    return f"{value:,{form}}"
