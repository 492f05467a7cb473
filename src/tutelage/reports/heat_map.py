"""The load of each expert over a training: one map a layer, from routers.jsonl.

A map has a row an expert and a column a moment; its shade says how many fair shares of the
layer's tokens the expert was given. What the page draws and what the files in plots/ show comes
from the same record.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

MOST_MAPS = 8
MOST_COLUMNS = 60
SHADES = 4
"""On either side of the fair share; the outermost is four times as much, or a quarter, or more."""
SCALE = ((-4, "¼ or less"), (-2, "½"), (0, "fair share"), (2, "2 times"), (4, "4 times or more"))


@final
@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One layer with experts."""

    layer: int
    steps: Sequence[int]
    """The moment of each column."""
    shares: Sequence[Sequence[float]]
    """For each expert and moment, its load in fair shares: 1 is even."""

    @property
    def title(self) -> str:
        """Which layer this is."""
        return f"MoE layer {self.layer + 1}"

    @property
    def paths(self) -> list[tuple[int, str]]:
        """For each shade but the fair one, an SVG path over cells of size 1."""
        found: dict[int, list[str]] = {}
        for expert, row in enumerate(self.shares):
            for column, share in enumerate(row):
                level = shade(share)
                if level:
                    found.setdefault(level, []).append(f"M{column} {expert}h1v1h-1z")
        return [(level, "".join(cells)) for level, cells in sorted(found.items())]

    @property
    def alternative(self) -> str:
        """The map in words, for those who cannot see it."""
        last = [row[-1] for row in self.shares]
        busiest, idlest = max(last), min(last)
        first = max(row[0] for row in self.shares)
        dead = sum(share == 0 for share in last)
        return (
            f"{self.title}, {len(last)} experts over steps {self.steps[0]} to {self.steps[-1]}: "
            f"the busiest had {first:.2f} fair shares at first; at the end expert "
            f"{last.index(busiest)} has {busiest:.2f}, expert {last.index(idlest)} has "
            f"{idlest:.2f}, and {dead} have nothing."
        )


def shade(share: float) -> int:
    """From -4 for a quarter of the fair share or less, over 0, to 4 for four times as much."""
    if not math.isfinite(share):
        return 0
    if share <= 0:
        return -SHADES
    return max(-SHADES, min(SHADES, round(SHADES / 2 * math.log2(share))))


def read_heat_maps(run_folder: Path) -> list[HeatMap]:
    """The maps of a run, at most a handful of its layers; none where no experts were watched.

    Lines that cannot be read are left out, as everywhere in a report.
    """
    path = run_folder / "routers.jsonl"
    if not path.is_file():
        return []
    moments = _moments(path.read_text(encoding="utf-8", errors="replace"))
    if not moments:
        return []
    kept = [moments[at] for at in _spread(len(moments), MOST_COLUMNS)]
    num_layers = len(kept[0][1])
    return [
        HeatMap(
            layer=layer,
            steps=[step for step, _ in kept],
            shares=[
                [load[layer][expert] * len(load[layer]) for _, load in kept]
                for expert in range(len(kept[0][1][layer]))
            ],
        )
        for layer in _spread(num_layers, MOST_MAPS)
    ]


def _moments(text: str) -> list[tuple[int, list[list[float]]]]:
    """Step and load of each line; lines of another shape than the first are left out."""
    found: list[tuple[int, list[list[float]]]] = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
            load = _table(cast("Mapping[str, Any]", value)["load"])
            step = int(cast("Mapping[str, Any]", value)["step"])
        except (ValueError, KeyError, TypeError):
            continue
        first = found[0][1] if found else load
        if load and list(map(len, load)) == list(map(len, first)):
            found.append((step, load))
    return found


def _table(value: object) -> list[list[float]]:
    rows = cast("Sequence[Sequence[Any]]", value)
    return [[float(share) for share in row] for row in rows if len(row)]


def _spread(num: int, most: int) -> list[int]:
    """All places, or so many of them, evenly apart from the first to the last."""
    if num <= most:
        return list(range(num))
    return sorted({round(at * (num - 1) / (most - 1)) for at in range(most)})
