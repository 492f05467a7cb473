"""Which objective recovers the demo's pruned student best, at equal tokens? `make evidence`.

    python -m benchmarks.evidence                        the whole of it, under an hour on two cores
    python -m benchmarks.evidence --recipe tiny --steps 5 --keep-layers 2 --tuning-rows 8

Every variant gets the same student, rows, order and tokens; its learning rate is tuned on the same
grid, with a seed and rows that are not used again. Finished runs are found and skipped: after a
kill, the same command goes on with the next run.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.evidence_plan import (
    METRICS,
    VARIANTS,
    Budget,
    PlannedRun,
    at_the_edge,
    best_rate,
    final_runs,
    finished,
    keep,
    results_table,
    tuning_runs,
    tuning_table,
    verdict_lines,
)
from benchmarks.evidence_runs import Workbench, work_folder
from benchmarks.measure import ROOT, in_short, machine_line

from tutelage.core.records import Rollout
from tutelage.reports import ComparedRun, Comparison, Variant
from tutelage.reports.comparison import write_comparison

TUNED_BY = "forward_kl"
Scores = dict[str, dict[float, float]]


@final
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one call does, and where it leaves it."""

    source: str
    folder: Path
    budget: Budget
    coincidence_steps: int

    @property
    def coincidence_path(self) -> Path:
        """The answer to whether CSD (student, student) and reverse KL are the same."""
        return self.folder / f"coincidence-{self.coincidence_steps}.json"


@final
class Progress:
    """Says which run is next, and how long the rest may take."""

    def __init__(self, num_runs: int) -> None:
        self._num_runs = num_runs
        self._seconds: list[float] = []

    def began(self, number: int, run: PlannedRun) -> None:
        """Before a run."""
        left = ""
        if self._seconds:
            pace = sum(self._seconds) / len(self._seconds)
            left = f", about {pace * (self._num_runs - number) / 60:.0f} min left"
        print(f"run {number + 1}/{self._num_runs}: {run.name}{left}", file=sys.stderr, flush=True)

    def ended(self, seconds: float) -> None:
        """After a run that was not skipped."""
        self._seconds.append(seconds)


def carried_out(
    runs: Sequence[PlannedRun],
    evidence: Evidence,
    bench: Workbench,
    judge: Sequence[Rollout],
    progress: Progress,
) -> list[dict[str, Any]]:
    """The result of every run, from disk where it is finished."""
    results: list[dict[str, Any]] = []
    folder = work_folder(evidence.folder)
    for run in runs:
        found = finished(folder, run, evidence.budget)
        if found is None:
            progress.began(len(results), run)
            began = time.perf_counter()
            keep(folder, run, evidence.budget, bench.run(run, judge=judge))
            progress.ended(time.perf_counter() - began)
            found = finished(folder, run, evidence.budget)
            assert found is not None, f"{run.name} was kept and is not there"
        results.append(found)
    return results


def scores_of(results: Sequence[Mapping[str, Any]]) -> Scores:
    """Variant to learning rate to the number it is tuned by."""
    scores: Scores = {}
    for result in results:
        given = scores.setdefault(result["variant"], {})
        given[float(result["learning_rate"])] = float(result["final"][TUNED_BY])
    return scores


def by_variant(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The results of each variant, in the order of the seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in VARIANTS}
    for result in results:
        found[result["variant"]].append(result)
    return found


def run(evidence: Evidence) -> str:
    """Carry out what is missing and write everything; returns the Markdown."""
    budget = evidence.budget
    bench = Workbench(evidence.source, budget)
    tuning = tuning_runs(list(VARIANTS), budget)
    scores = scores_of(carried_out(tuning, evidence, bench, bench.tuning, Progress(len(tuning))))
    rates = {name: best_rate(given, metric=TUNED_BY) for name, given in scores.items()}
    planned = final_runs(rates, budget)
    held_out = bench.work.rows.held_out
    final = carried_out(planned, evidence, bench, held_out, Progress(len(planned)))
    results = by_variant(final)
    before = bench.before()
    same = coincidence(evidence, bench, rates["reverse_kl"])
    compared(evidence, bench, results, before)
    text = written(evidence, scores, results, before, same)
    (evidence.folder / "evidence.md").write_text(text + "\n", encoding="utf-8")
    return text


def coincidence(evidence: Evidence, bench: Workbench, learning_rate: float) -> dict[str, Any]:
    """Measured once, then read."""
    path = evidence.coincidence_path
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    print("reverse KL beside CSD (student, student), fp64", file=sys.stderr, flush=True)
    found = bench.coincidence(num_steps=evidence.coincidence_steps, learning_rate=learning_rate)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return found


def compared(
    evidence: Evidence,
    bench: Workbench,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, float],
) -> None:
    """compare.json and its page."""
    last = evidence.budget.num_steps
    variants: list[Variant] = []
    for name, runs in results.items():
        recipe = bench.recipe_of(PlannedRun(variant=name, learning_rate=_rate(runs), seed=0))
        settings = recipe.model_dump(mode="json", include={"objective", "move", "training"})
        found = [
            ComparedRun(
                seed=result["seed"],
                final=result["final"],
                curve=[{"step": 0, **before}, {"step": last, **result["final"]}],
                seconds=result["seconds"],
            )
            for result in runs
        ]
        variants.append(Variant(name=name, settings=settings, runs=found))
    Comparison(
        title="Objectives at equal tokens on the demo's pair",
        metric_names=list(METRICS),
        variants=variants,
        notes=notes(evidence),
        num_planned_seeds=len(evidence.budget.seeds),
    ).save(evidence.folder)
    write_comparison(evidence.folder)


def _rate(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(runs[0]["learning_rate"])


def notes(evidence: Evidence) -> list[str]:
    """What was held equal."""
    budget = evidence.budget
    grid = ", ".join(f"{rate:g}" for rate in budget.learning_rates)
    work = (
        f"Recipe {evidence.source}: a student of {budget.keep_layers} layers, {budget.num_steps} "
        f"steps of {budget.rows_per_step} rows, {budget.precision}, seeds {list(budget.seeds)}; "
        "the same rows in the same order for every variant of a seed."
    )
    tuned = (
        f"Learning rates from {grid}, chosen for each variant by {TUNED_BY} on "
        f"{budget.num_tuning_rows} rows of their own with seed {budget.tuning_seed}."
    )
    return [work, tuned]


def written(
    evidence: Evidence,
    scores: Scores,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, float],
    same: Mapping[str, Any],
) -> str:
    """The Markdown for docs/log.md."""
    rates = {name: _rate(runs) for name, runs in results.items()}
    edge = at_the_edge(rates, evidence.budget)
    lines = ["## Objectives at equal tokens", "", *notes(evidence), ""]
    lines += [
        results_table(results, before),
        "",
        "Means of the seeds ± half a 95 % t interval.",
        "",
    ]
    for metric in (TUNED_BY, "top1_agreement"):
        lines += [f"{metric}, pairs by seed, 95 % intervals, Holm's correction:", ""]
        lines += [f"- {line}" for line in verdict_lines(results, metric)] + [""]
    lines += [tuning_table(scores, metric=TUNED_BY), ""]
    if edge:
        lines += [f"Best at an end of the grid, so a wider one might help: {', '.join(edge)}.", ""]
    lines += [*coincidence_lines(same), "", f"Machine: {machine_line()}."]
    return "\n".join(lines)


def coincidence_lines(same: Mapping[str, Any]) -> list[str]:
    """Whether CSD (student, student) is reverse KL, and how large a real difference is."""
    gaps = {
        name: same[f"{name}_against_reverse_kl"] for name in ("concrete_score_ss", "forward_kl")
    }
    told = [
        f"{name} {in_short(gap['relative_weight_difference'], digits=2)} "
        f"(largest single weight {in_short(gap['largest_weight_difference'], digits=2)})"
        for name, gap in gaps.items()
    ]
    line = (
        f"After {same['num_steps']} steps at {same['learning_rate']:g} in {same['precision']}, "
        f"relative difference of all weights to those of reverse KL: {'; '.join(told)}."
    )
    return [line]


def evidence_from(words: Sequence[str] | None = None) -> Evidence:
    """What the command line asks for."""
    default = Budget()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="demo", help="preset or file that names pair and rows")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "evidence")
    parser.add_argument("--steps", type=int, default=default.num_steps)
    parser.add_argument("--rows-per-step", type=int, default=default.rows_per_step)
    parser.add_argument("--rates", type=float, nargs="+", default=default.learning_rates)
    parser.add_argument("--seeds", type=int, nargs="+", default=default.seeds)
    parser.add_argument("--tuning-rows", type=int, default=default.num_tuning_rows)
    parser.add_argument("--keep-layers", type=int, default=default.keep_layers)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=default.precision)
    parser.add_argument("--coincidence-steps", type=int, default=10)
    asked = parser.parse_args(words)
    if default.tuning_seed in asked.seeds:
        parser.error(f"--seeds has {default.tuning_seed}, which tunes; choose others.")
    return Evidence(
        source=asked.recipe,
        folder=asked.folder,
        coincidence_steps=asked.coincidence_steps,
        budget=Budget(
            num_steps=asked.steps,
            rows_per_step=asked.rows_per_step,
            learning_rates=tuple(asked.rates),
            seeds=tuple(asked.seeds),
            num_tuning_rows=asked.tuning_rows,
            keep_layers=asked.keep_layers,
            precision=asked.precision,
        ),
    )


if __name__ == "__main__":
    try:
        print(run(evidence_from()))
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished runs are kept; the same command goes on with the next.")
