"""The fused loss beside its floor, plain full logits, TRL and Liger, on the same tensors.

    python -m benchmarks.loss --quick              one round of a small shape, one thread
    python -m benchmarks.loss                      three rounds, fp32 and bf16, one and all threads
    python -m benchmarks.loss --kind jsd           another divergence
    python -m benchmarks.loss --objectives         every objective of ours beside forward KL
    python -m benchmarks.loss --growth             memory and time as the tokens grow

It needs `pip install -e '.[benchmarks]'`; what is not installed is left out and said so. A process
for each implementation, rounds interleaved, peak memory over the loaded inputs with gradients
included, errors of loss and gradients against float64 on a slice beside every time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from benchmarks.command import Notebook, Sweep, address_space, missing_of, parser_for, sweep_of
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

FLOOR = "four matmuls alone"
COLUMNS = (
    *("implementation", "s", "cpu s", "x floor", "first s", "memory MiB", "x memory"),
    *("loss error", "gradient error", "near: loss error", "near: gradient error"),
)
NOTES = """\
{tokens} tokens, vocabulary {entries}, width {width}, {dtype}, {kind}, {threads} thread(s);
{rounds} interleaved rounds of {repeats}, medians. Memory: peak over the loaded inputs, gradients
included. Errors: relative, against float64 on a slice; near: with a student that is almost the
teacher; gradient: of the student's hidden states. The floor moved by a factor of {spread} between
rounds.
Machine: {machine}; huge pages for all (THP_MEM_ALLOC_ENABLE=1)."""


@final
@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One row of the table."""

    name: str
    implementation: str
    package: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dtypes: tuple[str, ...] = ("fp32", "bf16")


PEERS = (
    Implementation(name=FLOOR, implementation="floor"),
    Implementation(name="ours", implementation="ours", dtypes=("fp32",)),
    *(
        Implementation(
            name=f"ours, {logits} logits",
            implementation="ours",
            settings={"options": {"logits": logits}},
            dtypes=("bf16",),
        )
        for logits in ("native", "split")
    ),
    Implementation(name="plain full logits", implementation="naive"),
    Implementation(name="TRL GKD generalized_jsd_loss", implementation="trl_gkd", package="trl"),
    Implementation(
        name="TRL ChunkedDivergenceFunction", implementation="trl_chunked", package="trl"
    ),
    *(
        Implementation(
            name=f"Liger chunked, {how}",
            implementation="liger",
            package="liger-kernel",
            settings={"compiled": how == "compiled"},
        )
        for how in ("eager", "compiled")
    ),
)

OBJECTIVES: tuple[Mapping[str, Any], ...] = (
    *({"kind": kind} for kind in ("forward_kl", "reverse_kl", "jeffreys", "symmetric_kl", "jsd")),
    *({"kind": kind} for kind in ("skew_forward_kl", "skew_reverse_kl", "total_variation")),
    *({"kind": kind} for kind in ("alpha_beta", "adaptive_kl", "amid", "todi", "direct_logit")),
    {"kind": "direct_logit", "weight": "teacher", "normalisation": "mean"},
    {"kind": "concrete_score"},
    {"kind": "concrete_score", "weights": ["teacher", "student"]},
    {"kind": "concrete_score", "weights": ["uniform", "student"]},
    {"kind": "concrete_score", "mixture": 0.15},
    {"kind": "cross_entropy"},
    {"kind": "cross_entropy", "labels": "teacher"},
    {
        "kind": "weighted_sum",
        "parts": [
            {"weight": 0.5, "objective": {"kind": "forward_kl"}},
            {"weight": 0.5, "objective": {"kind": "cross_entropy"}},
        ],
    },
)


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of this script measures."""

    tokens: tuple[int, ...]
    entries: int
    width: int
    dtypes: tuple[str, ...]
    kind: str
    objectives: bool
    repeats: int
    sweep: Sweep


def rows_of(plan: Plan, dtype: str) -> list[Implementation]:
    """Everything that is asked for and installed."""
    if plan.objectives:
        return [
            Implementation(name=_in_words(o), implementation="ours", settings={"objective": o})
            for o in OBJECTIVES
        ]
    missing = missing_of(peer.package for peer in PEERS if peer.package)
    return [
        peer
        for peer in PEERS
        if dtype in peer.dtypes and peer.package not in missing and plan.sweep.only in peer.name
    ]


def _in_words(objective: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{k} {v}" for k, v in objective.items() if k not in ("kind", "parts"))
    return f"{objective['kind']} ({rest})" if rest else objective["kind"]


def measure(plan: Plan, *, tokens: int, dtype: str, threads: int) -> dict[str, list[Answer]]:
    """All rows of one table."""
    shape = {"tokens": tokens, "entries": plan.entries, "width": plan.width, "dtype": dtype}
    jobs = [
        Job(
            name=row.name,
            module="benchmarks.loss_work",
            request={
                **shape,
                "kind": plan.kind,
                "repeats": plan.repeats,
                "implementation": row.implementation,
                "compiled": False,
                **row.settings,
            },
            threads=threads,
            memory_bytes=address_space(),
        )
        for row in rows_of(plan, dtype)
    ]
    return interleaved(jobs, num_rounds=plan.sweep.num_rounds)


def floors_of(answers: Mapping[str, Sequence[Answer]]) -> dict[str, list[float]]:
    """Seconds of the first row's same work in each round, for every row alike."""
    first = next(iter(answers.values()), ())
    walls = [float(answer.get("wall_seconds", math.nan)) for answer in first]
    # A first row that failed was not asked again: nothing is known of the later rounds.
    walls += [math.nan] * max((len(given) for given in answers.values()), default=0)
    return {name: walls[: len(given)] for name, given in answers.items()}


def table_of(rows: Mapping[str, Judged]) -> str:
    """Medians; ratios to the first row, which is the floor, or forward KL among objectives."""
    first = next(iter(rows.values()))
    ours = next((row for name, row in rows.items() if name.startswith("ours")), first)
    lines: list[list[str]] = []
    for name, row in rows.items():
        cpu, memory = row.median("cpu_seconds"), row.median("memory_bytes")
        found = [
            row.median("wall_seconds"),
            cpu,
            # CPU seconds, which neighbours disturb less, as both do the same kind of work.
            cpu / first.median("cpu_seconds"),
            row.median("first_seconds"),
            memory / MIB,
            memory / ours.median("memory_bytes"),
            *(row.median(key) for key in ("loss_error", "hidden_error")),
            *(row.median(key) for key in ("near_loss_error", "near_hidden_error")),
        ]
        lines.append([row.label(name), *(in_short(number) for number in found)])
    return markdown_table(COLUMNS, lines)


def body_of(
    plan: Plan, answers: Mapping[str, Sequence[Answer]], *, threads: int, tokens: int, dtype: str
) -> list[str]:
    """The table with what a reader must know to trust it."""
    floors = floors_of(answers)
    rows = judged(answers, threads=threads, floors=floors)
    notes = NOTES.format(
        tokens=tokens,
        entries=plan.entries,
        width=plan.width,
        dtype=dtype,
        kind="every objective" if plan.objectives else plan.kind,
        threads=threads,
        rounds=plan.sweep.num_rounds,
        repeats=plan.repeats,
        spread=in_short(spread(floors)),
        machine=machine_line(),
    )
    return [table_of(rows), footnotes(rows), notes] if rows else [notes]


def run(plan: Plan) -> str:
    """Measure everything the plan asks for; returns the Markdown and keeps it with the numbers."""
    name = "loss-objectives" if plan.objectives else f"loss-{plan.kind}-{plan.entries}"
    notebook = Notebook(name=name, folder=plan.sweep.folder)
    for dtype in plan.dtypes:
        for threads in plan.sweep.threads:
            for tokens in plan.tokens:
                answers = measure(plan, tokens=tokens, dtype=dtype, threads=threads)
                body = body_of(plan, answers, threads=threads, tokens=tokens, dtype=dtype)
                title = f"{tokens} x {plan.entries}, width {plan.width}, {dtype}, {plan.kind}"
                notebook.add(title, threads=threads, body=body, numbers=answers)
    return notebook.text


def plan_from(words: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = parser_for(__doc__, quick="256 tokens over 8192 entries")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--entries", type=int, default=50304, help="vocabulary size")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--kind", choices=("forward_kl", "reverse_kl", "jsd"), default="forward_kl")
    parser.add_argument("--objectives", action="store_true", help="ours only, every objective")
    parser.add_argument("--growth", action="store_true", help="2048, 4096 and 8192 tokens")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args(words)
    tokens = (2048, 4096, 8192) if asked.growth else tuple(asked.tokens)
    return Plan(
        tokens=(256,) if asked.quick else tokens,
        entries=8192 if asked.quick else asked.entries,
        width=asked.width,
        dtypes=tuple(asked.dtype),
        kind=asked.kind,
        objectives=asked.objectives,
        repeats=1 if asked.quick else asked.repeats,
        sweep=sweep_of(asked),
    )


if __name__ == "__main__":
    print(run(plan_from()))
