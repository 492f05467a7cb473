"""A whole step beside TRL's trainer and plain transformers code, on the same rows.

    python -m benchmarks.step --quick               one round, one thread, the random pair
    python -m benchmarks.step                       three rounds, one thread and all of them
    python -m benchmarks.step --pair demo           SmolLM2 and its pruned student, the demo's rows
    python -m benchmarks.step --new-tokens 96       on-policy: the student completes the prompts

It needs `pip install -e '.[benchmarks]'`; what is not installed is left out and said so. Same rows,
same first weights, same optimizer; a process for each implementation, rounds interleaved. TRL's
stable DistillationTrainer is missing on purpose: it trains on the student's own samples only, so it
has no off-policy step to compare (its loss is in `benchmarks.loss`). On-policy, everyone samples at
temperature 1 from the whole distribution, at most that many tokens a row, and the speed counts the
tokens that the student wrote and was trained on. TRL's default, gradient checkpointing, switches
the generation's cache off; without checkpointing the cache is on.
"""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

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
from benchmarks.step_pairs import PairName, prepare

Group = Literal["ours", "trl", "naive"]
REFERENCE = "transformers Trainer, full logits, fp32"
YARDSTICK = "TRL GKD, defaults (bf16, checkpointing)"
NOTES = """\
{steps} timed steps after a first one, {rounds} interleaved rounds, medians. Memory is the peak over
the two loaded models. {losses} Machine: {machine}; huge pages for all (THP_MEM_ALLOC_ENABLE=1). A
fixed matrix product in every process varied by a factor of {spread}."""


@final
@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One row of the table: what is run, and with which settings."""

    name: str
    group: Group
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def module(self) -> str:
        """The worker that knows how to run it."""
        return "benchmarks.step_ours" if self.group == "ours" else "benchmarks.step_peers"


FP32 = {"bf16": False, "gradient_checkpointing": False}
BF16 = {"bf16": True, "gradient_checkpointing": False, "teacher": "bfloat16"}
IMPLEMENTATIONS = (
    Implementation(name="ours, fp32", group="ours", settings={"precision": "fp32"}),
    Implementation(name="ours, bf16", group="ours", settings={"precision": "bf16"}),
    Implementation(
        name="ours, bf16, native logits",
        group="ours",
        settings={"precision": "bf16", "logits": "native"},
    ),
    Implementation(name=YARDSTICK, group="trl", settings={"trainer": "gkd"}),
    Implementation(
        name="TRL GKD, fp32, no checkpointing", group="trl", settings={"trainer": "gkd", **FP32}
    ),
    Implementation(
        name="TRL GKD, bf16, no checkpointing, bf16 teacher",
        group="trl",
        settings={"trainer": "gkd", **BF16},
    ),
    Implementation(name=REFERENCE, group="naive", settings={"trainer": "naive", **FP32}),
    Implementation(
        name="transformers Trainer, full logits, bf16",
        group="naive",
        settings={"trainer": "naive", **BF16},
    ),
)


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of this script measures."""

    pair: PairName
    num_steps: int
    new_tokens: int
    """The most that the student writes for each prompt; 0 trains on the rows as they are."""
    sweep: Sweep

    @property
    def title(self) -> str:
        """What the tables are called."""
        written = f", {self.new_tokens} new tokens at most" if self.new_tokens else ""
        return f"{self.pair} pair{written}"

    def includes(self, implementation: Implementation) -> bool:
        """Whether it is asked for, and can do the work: the plain ones cannot write."""
        can = not self.new_tokens or implementation.group != "naive"
        return can and self.sweep.only in implementation.name


def jobs_of(plan: Plan, work_folder: Path, *, threads: int) -> list[Job]:
    """One job for each implementation that is asked for and installed."""
    has_trl = not missing_of(["trl"])
    shared = {
        "folder": str(work_folder),
        "num_steps": plan.num_steps,
        "new_tokens": plan.new_tokens,
    }
    return [
        Job(
            name=implementation.name,
            module=implementation.module,
            request={**shared, **implementation.settings},
            threads=threads,
            memory_bytes=address_space(),
        )
        for implementation in IMPLEMENTATIONS
        if plan.includes(implementation) and (has_trl or implementation.group != "trl")
    ]


def loss_differences(answers: Mapping[str, Sequence[Answer]]) -> dict[str, float]:
    """How far each implementation's losses, step by step, are from the plain fp32 ones."""
    reference = _losses(answers.get(REFERENCE, ()))
    differences: dict[str, float] = {}
    for name, given in answers.items():
        pairs = list(zip(_losses(given), reference, strict=False))
        differences[name] = max((abs(ours - its) for ours, its in pairs), default=float("nan"))
    return differences


def _losses(answers: Sequence[Answer]) -> list[float]:
    return next((answer["losses"] for answer in answers if "losses" in answer), [])


def floors_of(answers: Mapping[str, Sequence[Answer]]) -> dict[str, list[float]]:
    """Seconds of the fixed matrix product that each worker times beside its steps."""
    return {
        name: [float(answer.get("probe_seconds", math.nan)) for answer in given]
        for name, given in answers.items()
    }


def table_of(rows: Mapping[str, Judged]) -> str:
    """Medians, and ratios to TRL's defaults."""
    columns = (
        *("implementation", "tokens/s", "x TRL defaults", "step s", "first step s", "cpu/wall"),
        *("memory MiB", "x TRL defaults", "largest loss difference"),
    )
    differences = loss_differences({name: row.answers for name, row in rows.items()})
    yardstick = rows.get(YARDSTICK, Judged(answers=(), disturbed=()))
    lines: list[list[str]] = []
    for name, row in rows.items():
        speed, memory = row.median("tokens_per_second"), row.median("memory_bytes")
        line = [
            row.label(name),
            in_short(speed, digits=4),
            in_short(speed / yardstick.median("tokens_per_second")),
            *(in_short(row.median(key)) for key in ("step_seconds", "first_step_seconds")),
            in_short(row.median("cpu_per_wall"), digits=2),
            in_short(memory / MIB, digits=5),
            in_short(memory / yardstick.median("memory_bytes")),
            in_short(differences[name], digits=2),
        ]
        lines.append(line)
    return markdown_table(columns, lines)


def said_of_losses(plan: Plan, answers: Mapping[str, Sequence[Answer]]) -> str:
    """What may be compared of the losses: nothing where everyone writes rows of their own."""
    if plan.new_tokens:
        return "Everyone trains on samples of their own, so no losses are compared."
    fp32 = [value for name, value in loss_differences(answers).items() if "fp32" in name]
    most = in_short(max(fp32, default=math.nan), digits=2)
    return (
        "Losses are compared, step by step, with the plain fp32 ones; those in fp32 differ by at "
        f"most {most} nats."
    )


def body_of(plan: Plan, answers: Mapping[str, Sequence[Answer]], *, threads: int) -> list[str]:
    """The table with what a reader must know to trust it."""
    floors = floors_of(answers)
    rows = judged(answers, threads=threads, floors=floors)
    notes = NOTES.format(
        steps=plan.num_steps - 1,
        rounds=plan.sweep.num_rounds,
        losses=said_of_losses(plan, answers),
        machine=machine_line(),
        spread=in_short(spread(floors)),
    )
    return [table_of(rows), footnotes(rows), notes]


def prepared(plan: Plan) -> Path:
    """A folder with the pair and the rows, made anew."""
    folder = plan.sweep.folder / "work" / plan.pair
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare(folder, pair=plan.pair, num_batches=plan.num_steps)
    return folder


def run(plan: Plan) -> str:
    """Measure everything the plan asks for; returns the Markdown and keeps it with the numbers."""
    work_folder = prepared(plan)
    kind = "on-policy" if plan.new_tokens else "step"
    notebook = Notebook(name=f"{kind}-{plan.pair}", folder=plan.sweep.folder)
    for threads in plan.sweep.threads:
        print(f"{plan.title}, threads: {threads}", file=sys.stderr)
        jobs = jobs_of(plan, work_folder, threads=threads)
        answers = interleaved(jobs, num_rounds=plan.sweep.num_rounds)
        numbers = {"answers": answers, "loss_differences": loss_differences(answers)}
        body = body_of(plan, answers, threads=threads)
        notebook.add(plan.title, threads=threads, body=body, numbers=numbers)
    shutil.rmtree(work_folder)
    return notebook.text


def plan_from(words: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = parser_for(__doc__, quick="two steps")
    parser.add_argument("--pair", choices=("random", "demo"), default="random")
    parser.add_argument("--new-tokens", type=int, default=0, help="on-policy; 0 is off-policy")
    parser.add_argument("--steps", type=int, default=4, help="steps a round, the first untimed")
    asked = parser.parse_args(words)
    if asked.steps < 2:
        parser.error(f"--steps is {asked.steps}; it must be 2 or more: the first is not timed.")
    return Plan(
        pair=asked.pair,
        num_steps=2 if asked.quick else asked.steps,
        new_tokens=asked.new_tokens,
        sweep=sweep_of(asked),
    )


if __name__ == "__main__":
    print(run(plan_from()))
