"""Balanced k-means beside k-means-constrained and scikit-learn: seconds and memory by size.

    python benchmarks/clustering.py --quick            one small size
    python benchmarks/clustering.py                    up to 18,944 neurons in 128 clusters
    python benchmarks/clustering.py --size 4096x16x512 neurons x clusters x width of a row

Rows are random normal numbers. In thousands of dimensions each is nearest to the mean that it is
part of, so few rounds change anything; `--rank 64` puts most of a row into 64 random directions,
where rounds go on and on. One start and at most as many rounds for all. k-means-constrained solves
a minimum-cost flow over neurons times clusters in every round; it is asked only up to a size at
which that is bearable. scikit-learn's k-means has no sizes to keep and shows what they cost. A
process for each.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

# As a script, this file's own folder is on the path, and not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import Notebook, Sweep, address_space, parser_for, sweep_of
from benchmarks.measure import (
    MIB,
    Answer,
    Job,
    in_short,
    interleaved,
    machine_line,
    markdown_table,
    median_of,
)

ENGINES = ("ours", "k-means-constrained", "scikit-learn, sizes free")
COLUMNS = (
    *("implementation", "CPU s", "wall s", "memory MiB", "rounds", "sizes vary by"),
    "variance left",
)
NOTES = """\
Random rows{rank}; at most {limit} rounds, one start; {rounds} interleaved measurement(s), medians.
Memory: peak over the rows themselves. Sizes vary by: standard deviation over mean. Variance left:
within clusters, as a part of all. Machine: {machine}."""
MOST_EDGES = 100_000


@final
@dataclass(frozen=True, kw_only=True)
class Size:
    """One problem."""

    neurons: int
    clusters: int
    width: int

    @staticmethod
    def parsed(text: str) -> "Size":
        """From NEURONSxCLUSTERSxWIDTH."""
        neurons, clusters, width = (int(part) for part in text.split("x"))
        return Size(neurons=neurons, clusters=clusters, width=width)

    @property
    def title(self) -> str:
        """As a heading says it."""
        return f"{self.neurons:,} neurons of width {self.width:,} in {self.clusters} clusters"


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of this script measures."""

    sizes: tuple[Size, ...]
    limit: int
    rank: int
    sweep: Sweep


def jobs_of(plan: Plan, size: Size, *, threads: int) -> list[Job]:
    """One job for each implementation that can be asked at this size."""
    bearable = size.neurons * size.clusters <= MOST_EDGES
    return [
        Job(
            name=engine,
            module="benchmarks.clustering_work",
            request={
                "engine": engine,
                "neurons": size.neurons,
                "clusters": size.clusters,
                "width": size.width,
                "rounds": plan.limit,
                "rank": plan.rank,
            },
            threads=threads,
            memory_bytes=address_space(),
        )
        for engine in ENGINES
        if plan.sweep.only in engine and (bearable or engine != "k-means-constrained")
    ]


def table_of(answers: Mapping[str, Sequence[Answer]]) -> str:
    """Medians, a row for each implementation."""
    lines: list[list[str]] = []
    for name, given in answers.items():
        failed = next((answer["error"] for answer in given if "error" in answer), None)
        lines.append(
            [
                name if failed is None else f"{name}: {failed}",
                in_short(median_of(given, "cpu_seconds")),
                in_short(median_of(given, "wall_seconds")),
                in_short(median_of(given, "memory_bytes") / MIB, digits=4),
                in_short(median_of(given, "rounds") or float("nan")),
                in_short(median_of(given, "size_variation"), digits=2),
                in_short(median_of(given, "inertia_share"), digits=5),
            ]
        )
    return markdown_table(COLUMNS, lines)


def run(plan: Plan) -> str:
    """Measure everything the plan asks for; returns the Markdown and keeps it with the numbers."""
    notebook = Notebook(
        name="clustering" + (f"-rank{plan.rank}" if plan.rank else ""), folder=plan.sweep.folder
    )
    notes = NOTES.format(
        rank=f", most of each in {plan.rank} directions" if plan.rank else "",
        limit=plan.limit,
        rounds=plan.sweep.num_rounds,
        machine=machine_line(),
    )
    for threads in plan.sweep.threads:
        for size in plan.sizes:
            jobs = jobs_of(plan, size, threads=threads)
            answers = interleaved(jobs, num_rounds=plan.sweep.num_rounds)
            body = [table_of(answers), notes]
            notebook.add(size.title, threads=threads, body=body, numbers=answers)
    return notebook.text


def plan_from(words: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = parser_for(__doc__, quick="384 neurons in 8 clusters")
    parser.add_argument(
        "--size", action="append", type=Size.parsed, help="NEURONSxCLUSTERSxWIDTH, repeatable"
    )
    parser.add_argument("--limit", type=int, default=50, help="rounds of k-means, at most")
    parser.add_argument("--rank", type=int, default=0, help="directions that rows lie in; 0: all")
    asked = parser.parse_args(words)
    usual = ["384x8x64"] if asked.quick else ["1536x8x576", "4096x16x1024", "18944x128x3584"]
    sizes = asked.size or [Size.parsed(text) for text in usual]
    return Plan(sizes=tuple(sizes), limit=asked.limit, rank=asked.rank, sweep=sweep_of(asked))


if __name__ == "__main__":
    print(run(plan_from()))
