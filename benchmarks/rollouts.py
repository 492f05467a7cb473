"""The slot engine beside transformers' `generate`: the same ragged prompts, the same answers' ends.

    python benchmarks/rollouts.py --quick           one round of few rows, one thread
    python benchmarks/rollouts.py                   three rounds, one thread and all of them
    python benchmarks/rollouts.py --model smollm2   SmolLM2-135M from the installed package
    python benchmarks/rollouts.py --group 8         eight completions of each prompt

What `generate` is given: batches in the order of the prompts, padded on the left, each until its
last row has ended. `no cache` is what TRL's GKD does by default (gradient checkpointing switches
the cache off); it completes fewer and shorter rows, or nobody would wait for it. A process for
each implementation, rounds interleaved. Ratios are of tokens per CPU second, which neighbours on
the same machine disturb least.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

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
)
from benchmarks.rounds import Judged, footnotes, judged, spread

YARDSTICK = "generate, {dtype}"
COLUMNS = (
    *("implementation", "tokens/CPU s", "x generate, same dtype", "tokens/s", "tokens"),
    *("cpu/wall", "memory MiB"),
)
NOTES = """\
{prompts} prompts of 48 to 128 tokens, {group} row(s) of each prompt, answers of up to {longest}
tokens with lognormal lengths, {batch} rows side by side, {threads} thread(s); {rounds} interleaved
rounds, medians. Tokens behind the end of an answer do not count. Memory: peak over the loaded
model. `no cache` completes {few} rows of up to {short} tokens. A fixed matrix product in every
process varied by a factor of {spread}.
Machine: {machine}; huge pages for all (THP_MEM_ALLOC_ENABLE=1)."""


@final
@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One row of the table."""

    name: str
    engine: str
    dtype: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_short: bool = False


IMPLEMENTATIONS = (
    *(Implementation(name=f"slots, {d}", engine="slots", dtype=d) for d in ("fp32", "bf16")),
    *(
        Implementation(name=YARDSTICK.format(dtype=d), engine="generate", dtype=d)
        for d in ("fp32", "bf16")
    ),
    *(
        Implementation(
            name=f"generate, {d}, static cache",
            engine="generate",
            dtype=d,
            settings={"cache": "static"},
        )
        for d in ("fp32", "bf16")
    ),
    Implementation(name="slots, autocast", engine="slots", dtype="autocast"),
    Implementation(name="generate, autocast", engine="generate", dtype="autocast"),
    Implementation(
        name="generate, fp32, no cache",
        engine="generate",
        dtype="fp32",
        settings={"cache": "none"},
        is_short=True,
    ),
)


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of this script measures."""

    model: str
    prompts: int
    group: int
    longest: int
    batch: int
    few: int
    short: int
    sweep: Sweep


def jobs_of(plan: Plan, *, threads: int) -> list[Job]:
    """One job for each implementation that is asked for."""
    return [
        Job(
            name=row.name,
            module="benchmarks.rollouts_work",
            request={
                "model": plan.model,
                "prompts": plan.few if row.is_short else plan.prompts,
                "group": min(plan.group, plan.few) if row.is_short else plan.group,
                "longest": plan.short if row.is_short else plan.longest,
                "batch": plan.batch,
                "engine": row.engine,
                "dtype": row.dtype,
                "cache": "dynamic",
                **row.settings,
            },
            threads=threads,
            memory_bytes=address_space(),
        )
        for row in IMPLEMENTATIONS
        if plan.sweep.only in row.name
    ]


def table_of(rows: Mapping[str, Judged]) -> str:
    """Medians, and ratios to `generate` in the same dtype."""
    dtypes = {row.name: row.dtype for row in IMPLEMENTATIONS}
    nothing = Judged(answers=(), disturbed=())
    lines: list[list[str]] = []
    for name, row in rows.items():
        yardstick = rows.get(YARDSTICK.format(dtype=dtypes[name]), nothing)
        speed = row.median("per_cpu_second")
        found = [
            in_short(speed, digits=4),
            in_short(speed / yardstick.median("per_cpu_second")),
            in_short(row.median("per_wall_second"), digits=4),
            in_short(row.median("tokens"), digits=6),
            in_short(row.median("cpu_per_wall"), digits=2),
            in_short(row.median("memory_bytes") / MIB, digits=4),
        ]
        lines.append([row.label(name), *found])
    return markdown_table(COLUMNS, lines)


def body_of(plan: Plan, answers: Mapping[str, Sequence[Answer]], *, threads: int) -> list[str]:
    """The table with what a reader must know to trust it."""
    floors = {
        name: [float(answer.get("probe_seconds", math.nan)) for answer in given]
        for name, given in answers.items()
    }
    rows = judged(answers, threads=threads, floors=floors)
    notes = NOTES.format(
        prompts=plan.prompts // plan.group,
        group=plan.group,
        longest=plan.longest,
        batch=plan.batch,
        threads=threads,
        rounds=plan.sweep.num_rounds,
        few=plan.few,
        short=plan.short,
        spread=in_short(spread(floors)),
        machine=machine_line(),
    )
    return [table_of(rows), footnotes(rows), notes]


def run(plan: Plan) -> str:
    """Measure everything the plan asks for; returns the Markdown and keeps it with the numbers."""
    name = f"rollouts-{plan.model}" + (f"-group{plan.group}" if plan.group > 1 else "")
    notebook = Notebook(name=name, folder=plan.sweep.folder)
    for threads in plan.sweep.threads:
        answers = interleaved(jobs_of(plan, threads=threads), num_rounds=plan.sweep.num_rounds)
        body = body_of(plan, answers, threads=threads)
        notebook.add(f"rollouts, {plan.model}", threads=threads, body=body, numbers=answers)
    return notebook.text


def plan_from(words: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = parser_for(__doc__, quick="8 rows of up to 24 tokens")
    parser.add_argument("--model", choices=("random50m", "smollm2"), default="random50m")
    parser.add_argument("--prompts", type=int, default=32, help="rows in all")
    parser.add_argument("--group", type=int, default=1, help="rows of each prompt")
    parser.add_argument("--longest", type=int, default=160, help="tokens of the longest answer")
    parser.add_argument("--batch", type=int, default=16, help="rows side by side")
    asked = parser.parse_args(words)
    if asked.prompts % asked.group:
        parser.error(f"--prompts is {asked.prompts}; it must be a multiple of --group.")
    return Plan(
        model=asked.model,
        prompts=8 * asked.group if asked.quick else asked.prompts,
        group=asked.group,
        longest=24 if asked.quick else asked.longest,
        batch=4 if asked.quick else asked.batch,
        few=8,
        short=8 if asked.quick else 48,
        sweep=sweep_of(asked),
    )


if __name__ == "__main__":
    print(run(plan_from()))
