"""Which rounds of a comparison to believe, and how a table says so.

A round is disturbed for an implementation where its work had not its cores to itself, or where the
floor, a piece of work that is the same in every round, was slower than in its best round. Disturbed
rounds are left out of the medians as long as another one remains.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.measure import Answer, median_of

LEAST_CPU_PER_WALL = 0.85
MOST_FLOOR_MOVE = 0.10
SOME_LEFT_OUT, NONE_LEFT = "\\*", "†"


@final
@dataclass(frozen=True, kw_only=True)
class Judged:
    """One implementation's answers, and which of its rounds were disturbed."""

    answers: Sequence[Answer]
    disturbed: Sequence[int]
    """Numbers of rounds, from 1."""

    @property
    def believed(self) -> list[Answer]:
        """The answers of quiet rounds, or all of them where there is no quiet one."""
        quiet = [a for n, a in enumerate(self.answers, 1) if n not in self.disturbed]
        return quiet if any("error" not in answer for answer in quiet) else list(self.answers)

    @property
    def mark(self) -> str:
        """What stands behind the name: nothing, or the sign of a footnote."""
        if not self.disturbed:
            return ""
        return SOME_LEFT_OUT if len(self.believed) < len(self.answers) else NONE_LEFT

    def median(self, key: str) -> float:
        """The median of one number over the believed rounds; nan where none gave it."""
        return median_of(self.believed, key)

    def label(self, name: str) -> str:
        """The first cell of a row: the name, its mark, and why it failed if it did."""
        failed = next((answer["error"] for answer in self.answers if "error" in answer), None)
        return f"{name}{self.mark}" if failed is None else f"{name}{self.mark}: {failed}"


def judged(
    answers: Mapping[str, Sequence[Answer]],
    *,
    threads: int,
    floors: Mapping[str, Sequence[float]],
) -> dict[str, Judged]:
    """Every implementation's rounds, judged.

    Args:
        floors: seconds of the floor in each round of each implementation; nan where unknown.
    """
    best = best_floor(floors)
    return {
        name: Judged(
            answers=given,
            disturbed=[
                number
                for number, (answer, floor) in enumerate(zip(given, floors[name], strict=True), 1)
                if shared_its_cores(answer, threads=threads) or floor > best * (1 + MOST_FLOOR_MOVE)
            ],
        )
        for name, given in answers.items()
    }


def shared_its_cores(answer: Answer, *, threads: int) -> bool:
    """Whether others ran on the cores of this work; of a failure nothing is known."""
    return answer.get("cpu_per_wall", math.inf) < LEAST_CPU_PER_WALL * threads


def best_floor(floors: Mapping[str, Sequence[float]]) -> float:
    """The fastest floor of all rounds; nan where there is none."""
    return min(_known(floors), default=math.nan)


def spread(floors: Mapping[str, Sequence[float]]) -> float:
    """Slowest over fastest floor: 1 on a quiet machine."""
    return max(_known(floors), default=math.nan) / best_floor(floors)


def _known(floors: Mapping[str, Sequence[float]]) -> list[float]:
    return [second for given in floors.values() for second in given if not math.isnan(second)]


def footnotes(rows: Mapping[str, Judged]) -> str:
    """What the marks mean, and which rounds they are about; empty where nothing was disturbed."""
    meanings = {
        SOME_LEFT_OUT: "left out of the medians",
        NONE_LEFT: "not to be trusted, for no round was quiet; the medians are over all",
    }
    lines: list[str] = []
    for mark, meaning in meanings.items():
        marked = {name: row for name, row in rows.items() if row.mark == mark}
        if marked:
            which = "; ".join(f"{name}, {_rounds(row.disturbed)}" for name, row in marked.items())
            lines.append(f"{mark} {meaning}: {which}.")
    if lines:
        lines.append(
            f"Disturbed is a round with CPU seconds below {LEAST_CPU_PER_WALL:g} of the threads' "
            f"wall seconds, or with a floor more than {MOST_FLOOR_MOVE:.0%} above its best."
        )
    return "\n".join(lines)


def _rounds(numbers: Sequence[int]) -> str:
    return f"round{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
