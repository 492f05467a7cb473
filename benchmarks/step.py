"""A whole off-policy step beside TRL's trainer and plain transformers code, on the same rows.

    python -m benchmarks.step --quick               one round, one thread, the random pair
    python -m benchmarks.step                       three rounds, one thread and all of them
    python -m benchmarks.step --pair demo           SmolLM2 and its pruned student, the demo's rows

It needs `pip install -e '.[benchmarks]'`; what is not installed is left out and said so. Same rows,
same first weights, same optimizer; a process for each implementation, rounds interleaved. TRL's
stable DistillationTrainer is missing on purpose: it trains on the student's own samples only, so it
has no off-policy step to compare (its loss is in `benchmarks.loss`).
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from benchmarks.measure import (
    RESULTS,
    Answer,
    Job,
    in_short,
    installed,
    interleaved,
    machine_line,
    markdown_table,
    median_of,
    write_results,
)
from benchmarks.step_pairs import PairName, prepare

Group = Literal["ours", "trl", "naive"]
REFERENCE = "transformers Trainer, full logits, fp32"
YARDSTICK = "TRL GKD, defaults (bf16, checkpointing)"
MIB = 2**20
NOTES = """\
{steps} timed steps after a first one, {rounds} interleaved rounds, medians. Memory is the peak over
the two loaded models. Losses are compared, step by step, with the plain fp32 ones; those in fp32
differ by at most {most} nats. Machine: {machine}; huge pages for all (THP_MEM_ALLOC_ENABLE=1). A
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
    num_rounds: int
    threads: tuple[int, ...]
    only: str
    folder: Path


def jobs_of(plan: Plan, work_folder: Path, *, threads: int) -> list[Job]:
    """One job for each implementation that is asked for and installed."""
    has_trl = installed("trl") is not None
    if not has_trl:
        print("TRL is not installed: pip install -e '.[benchmarks]'", file=sys.stderr)
    shared = {"folder": str(work_folder), "num_steps": plan.num_steps, "pair": plan.pair}
    return [
        Job(
            name=implementation.name,
            module=implementation.module,
            request={**shared, **implementation.settings},
            threads=threads,
            memory_bytes=_most_memory(),
        )
        for implementation in IMPLEMENTATIONS
        if plan.only in implementation.name and (has_trl or implementation.group != "trl")
    ]


def _most_memory() -> int:
    """Address space for a worker: well above the machine's memory, which mappings exceed."""
    return 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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


def table_of(answers: Mapping[str, Sequence[Answer]]) -> str:
    """Medians, and ratios to TRL's defaults."""
    columns = (
        *("implementation", "tokens/s", "x TRL defaults", "step s", "first step s", "cpu/wall"),
        *("memory MiB", "x TRL defaults", "largest loss difference"),
    )
    differences = loss_differences(answers)
    yardstick = answers.get(YARDSTICK, ())
    rows: list[list[str]] = []
    for name, given in answers.items():
        speed, memory = median_of(given, "tokens_per_second"), median_of(given, "memory_bytes")
        ratios = (
            speed / median_of(yardstick, "tokens_per_second"),
            memory / median_of(yardstick, "memory_bytes"),
        )
        failed = next((answer["error"] for answer in given if "error" in answer), None)
        row = [
            name if failed is None else f"{name}: {failed}",
            in_short(speed, digits=4),
            in_short(ratios[0]),
            *(in_short(median_of(given, key)) for key in ("step_seconds", "first_step_seconds")),
            in_short(median_of(given, "cpu_per_wall"), digits=2),
            in_short(memory / MIB, digits=5),
            in_short(ratios[1]),
            in_short(differences[name], digits=2),
        ]
        rows.append(row)
    return markdown_table(columns, rows)


def probe_spread(answers: Mapping[str, Sequence[Answer]]) -> float:
    """Slowest over fastest of the fixed matrix product each worker times: 1 on a quiet machine."""
    probes = [a["probe_seconds"] for given in answers.values() for a in given if "losses" in a]
    return max(probes) / min(probes) if probes else float("nan")


def report(plan: Plan, threads: int, answers: Mapping[str, Sequence[Answer]]) -> str:
    """The table with what a reader must know to trust it."""
    differences = loss_differences(answers)
    fp32 = [value for name, value in differences.items() if "fp32" in name]
    busy = [
        name
        for name, given in answers.items()
        if given and median_of(given, "cpu_per_wall") < 0.85 * threads
    ]
    numbers = {
        "steps": plan.num_steps - 1,
        "rounds": plan.num_rounds,
        "most": in_short(max(fp32, default=float("nan")), digits=2),
        "machine": machine_line(),
        "spread": in_short(probe_spread(answers)),
    }
    title = f"### {plan.pair} pair, {threads} thread{'s' if threads > 1 else ''}"
    lines = [title, "", table_of(answers), "", NOTES.format(**numbers)]
    if busy:
        lines.append(f"Not to be trusted, the cores were shared: {', '.join(busy)}.")
    return "\n".join(lines)


def prepared(plan: Plan) -> Path:
    """A folder with the pair and the rows, made anew."""
    folder = plan.folder / "work" / plan.pair
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare(folder, pair=plan.pair, num_batches=plan.num_steps)
    return folder


def run(plan: Plan) -> str:
    """Measure everything the plan asks for; returns the Markdown and keeps it with the numbers."""
    work_folder = prepared(plan)
    reports: list[str] = []
    results: dict[str, Any] = {"machine": machine_line(), "pair": plan.pair}
    for threads in plan.threads:
        print(f"{plan.pair} pair, threads: {threads}", file=sys.stderr)
        jobs = jobs_of(plan, work_folder, threads=threads)
        answers = interleaved(jobs, num_rounds=plan.num_rounds)
        results[f"threads_{threads}"] = {
            "answers": answers,
            "loss_differences": loss_differences(answers),
            "probe_spread": probe_spread(answers),
        }
        reports.append(report(plan, threads, answers))
        # Written after each setting, so that a killed run leaves what it has.
        text = "\n\n".join(reports)
        write_results(f"step-{plan.pair}", results, text, folder=plan.folder)
    shutil.rmtree(work_folder)
    return "\n\n".join(reports)


def plan_from(words: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Verbatim)
    parser.add_argument("--pair", choices=("random", "demo"), default="random")
    parser.add_argument("--steps", type=int, default=4, help="steps a round, the first untimed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores")
    parser.add_argument("--only", default="", help="only implementations with this in their name")
    parser.add_argument("--quick", action="store_true", help="one round of two steps, one thread")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    if asked.steps < 2:
        parser.error(f"--steps is {asked.steps}; it must be 2 or more: the first is not timed.")
    threads = tuple(asked.threads or sorted({1, os.cpu_count() or 1}))
    return Plan(
        pair=asked.pair,
        num_steps=2 if asked.quick else asked.steps,
        num_rounds=1 if asked.quick else asked.rounds,
        threads=threads[:1] if asked.quick else threads,
        only=asked.only,
        folder=asked.folder,
    )


class _Verbatim(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description as they are."""


if __name__ == "__main__":
    print(run(plan_from()))
