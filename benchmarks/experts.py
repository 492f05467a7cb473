"""The experts of one layer beside transformers' own: forward and backward, by size and dtype.

    python benchmarks/experts.py --quick               two small sizes
    python benchmarks/experts.py                       three rounds, one thread and all of them
    python benchmarks/experts.py --size 576x192x8x4x512 width x expert's width x N x K x tokens

Router and experts of a Mixtral layer with random weights; bf16 is autocast over fp32 weights. An
engine that refuses a dtype says so in the table. A process for each, rounds interleaved.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

# As a script, this file's own folder is on the path, and not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import Notebook, Sweep, parser_for, sweep_of
from benchmarks.experts_work import ENGINES
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

COLUMNS = ("implementation", "CPU ms", "beside ours", "wall ms", "memory MiB", "norm of the output")
NOTES = """\
Forward and backward, {rounds} interleaved round(s) of {repeats}, medians. Memory: peak over the
layer and its tokens. Machine: {machine}."""
USUAL = ("32x16x8x2x256", "576x192x8x2x512", "576x192x8x4x512", "2048x768x16x4x256")


@final
@dataclass(frozen=True, kw_only=True)
class Size:
    """One layer and its tokens."""

    width: int
    expert_width: int
    experts: int
    active: int
    tokens: int

    @staticmethod
    def parsed(text: str) -> "Size":
        """From WIDTHxEXPERT_WIDTHxEXPERTSxACTIVExTOKENS."""
        width, expert_width, experts, active, tokens = (int(part) for part in text.split("x"))
        return Size(
            width=width,
            expert_width=expert_width,
            experts=experts,
            active=active,
            tokens=tokens,
        )

    @property
    def title(self) -> str:
        """As a heading says it."""
        return (
            f"width {self.width}, {self.experts} experts of {self.expert_width}, "
            f"{self.active} active, {self.tokens} tokens"
        )


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of this script measures."""

    sizes: tuple[Size, ...]
    dtypes: tuple[str, ...]
    repeats: int
    sweep: Sweep


def jobs_of(plan: Plan, size: Size, dtype: str, *, threads: int) -> list[Job]:
    """One job for each implementation."""
    return [
        Job(
            name=engine,
            module="benchmarks.experts_work",
            request={**asdict(size), "engine": engine, "dtype": dtype, "repeats": plan.repeats},
            threads=threads,
        )
        for engine in ENGINES
        if plan.sweep.only in engine
    ]


def table_of(answers: Mapping[str, Sequence[Answer]]) -> str:
    """Medians, a row for each implementation."""
    ours = median_of(answers.get("ours", ()), "cpu_seconds")
    lines: list[list[str]] = []
    for name, given in answers.items():
        failed = next((answer["error"] for answer in given if "error" in answer), None)
        if failed is not None:
            lines.append([f"{name}: {failed}", *["-"] * (len(COLUMNS) - 1)])
            continue
        seconds = median_of(given, "cpu_seconds")
        lines.append(
            [
                name,
                in_short(seconds * 1000),
                in_short(seconds / ours, digits=2),
                in_short(median_of(given, "wall_seconds") * 1000),
                in_short(median_of(given, "memory_bytes") / MIB),
                in_short(median_of(given, "norm"), digits=5),
            ]
        )
    return markdown_table(COLUMNS, lines)


def run(plan: Plan) -> str:
    """Measure everything the plan asks for; returns the Markdown and keeps it with the numbers."""
    notebook = Notebook(name="experts", folder=plan.sweep.folder)
    notes = NOTES.format(rounds=plan.sweep.num_rounds, repeats=plan.repeats, machine=machine_line())
    for threads in plan.sweep.threads:
        for size in plan.sizes:
            for dtype in plan.dtypes:
                jobs = jobs_of(plan, size, dtype, threads=threads)
                answers = interleaved(jobs, num_rounds=plan.sweep.num_rounds)
                title = f"{dtype}, {size.title}"
                body = [table_of(answers), notes]
                notebook.add(title, threads=threads, body=body, numbers=answers)
    return notebook.text


def plan_from(words: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = parser_for(__doc__, quick="two small sizes, fp32")
    parser.add_argument(
        "--size", action="append", type=Size.parsed, help="WIDTHxEXPERT_WIDTHxNxKxTOKENS"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp64"), nargs="+", default=["fp32", "bf16"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args(words)
    usual = [Size.parsed(text) for text in (USUAL[:2] if asked.quick else USUAL)]
    return Plan(
        sizes=tuple(asked.size or usual),
        dtypes=("fp32",) if asked.quick else tuple(asked.dtype),
        repeats=asked.repeats,
        sweep=sweep_of(asked),
    )


if __name__ == "__main__":
    print(run(plan_from()))
