"""What `make evidence` runs, in which order, and what may be concluded: pure functions.

Two rounds: every variant on the same small grid of learning rates with a seed of its own and judged
on rows of their own, then every variant at its best learning rate with the seeds that count.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.measure import in_short, markdown_table

from tutelage.reports.statistics import Interval, difference, mean_interval, verdicts

RESULT_NAME = "result.json"
Settings = Mapping[str, Any]

VARIANTS: dict[str, Settings] = {
    "cross_entropy": {"objective": {"kind": "cross_entropy"}},
    "forward_kl": {"objective": {"kind": "forward_kl"}},
    "reverse_kl": {"objective": {"kind": "reverse_kl"}},
    "taid_linear": {
        "objective": {"kind": "forward_kl"},
        "move": {"kind": "taid", "schedule": "linear"},
    },
    "concrete_score_ss": {
        "objective": {"kind": "concrete_score", "weights": ["student", "student"]}
    },
    "concrete_score_ts": {
        "objective": {"kind": "concrete_score", "weights": ["teacher", "student"]}
    },
}
LOWER_IS_BETTER = {
    "forward_kl": True,
    "reverse_kl": True,
    "perplexity": True,
    "top1_agreement": False,
}
METRICS = tuple(LOWER_IS_BETTER)


@final
@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much work each run is: the same for all, or nothing could be compared."""

    num_steps: int = 25
    rows_per_step: int = 8
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    seeds: tuple[int, ...] = (1, 2, 3)
    tuning_seed: int = 0
    num_tuning_rows: int = 40
    keep_layers: int = 21
    precision: str = "bf16"

    @property
    def fingerprint(self) -> str:
        """Changes with anything that makes a finished run another run; not with its lists."""
        part = {name: value for name, value in asdict(self).items() if name not in _LISTS}
        return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:12]


_LISTS = ("learning_rates", "seeds", "tuning_seed")


@final
@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training of the student."""

    variant: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder below the evidence folder."""
        return f"{self.variant}/lr-{self.learning_rate:g}/seed-{self.seed}"


def tuning_runs(variants: Sequence[str], budget: Budget) -> list[PlannedRun]:
    """Every variant at every learning rate."""
    return [
        PlannedRun(variant=variant, learning_rate=rate, seed=budget.tuning_seed)
        for rate in budget.learning_rates
        for variant in variants
    ]


def final_runs(rates: Mapping[str, float], budget: Budget) -> list[PlannedRun]:
    """Every variant at its best learning rate, seed by seed: a killed run has whole seeds."""
    return [
        PlannedRun(variant=variant, learning_rate=rate, seed=seed)
        for seed in budget.seeds
        for variant, rate in rates.items()
    ]


def finished(folder: Path, run: PlannedRun, budget: Budget) -> dict[str, Any] | None:
    """What a run left behind when it ended; None if it never did, or had another budget."""
    try:
        result = json.loads((folder / run.name / RESULT_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result.get("fingerprint") == budget.fingerprint else None


def keep(folder: Path, run: PlannedRun, budget: Budget, result: Mapping[str, Any]) -> None:
    """Leave a run's result behind, whole or not at all."""
    path = folder / run.name / RESULT_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    text = json.dumps({**result, **asdict(run), "fingerprint": budget.fingerprint}, indent=1)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def best_rate(scores: Mapping[float, float], *, metric: str) -> float:
    """The learning rate with the best tuning score; a run that broke (nan) never wins."""
    sign = 1.0 if LOWER_IS_BETTER[metric] else -1.0
    ranked = sorted((sign * score, rate) for rate, score in scores.items() if math.isfinite(score))
    if not ranked:
        raise ValueError(f"No learning rate of {sorted(scores)} gave a finite {metric}.")
    return ranked[0][1]


def at_the_edge(rates: Mapping[str, float], budget: Budget) -> list[str]:
    """Variants whose best learning rate ends the grid: a wider one might serve them better."""
    ends = {min(budget.learning_rates), max(budget.learning_rates)}
    return [variant for variant, rate in rates.items() if rate in ends]


Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Variant to the results of its seeds."""


def by_seed(results: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """One metric at the end of each run, by seed."""
    return {int(result["seed"]): float(result["final"][metric]) for result in results}


def with_interval(interval: Interval) -> str:
    """A mean and what stands behind its ± sign."""
    half = interval.half_width
    return f"{interval.mean:.4g}" + ("" if half is None else f" ± {half:.2g}")


def results_table(results: Results, before: Mapping[str, float]) -> str:
    """Means over the seeds with 95 % intervals, the untrained student first."""
    rows = [["before", "", *(f"{before[metric]:.4g}" for metric in METRICS), "", ""]]
    for variant, runs in results.items():
        if not runs:
            continue
        cells = [
            with_interval(mean_interval(list(by_seed(runs, metric).values()))) for metric in METRICS
        ]
        seconds = in_short(sum(float(run["seconds"]) for run in runs) / len(runs))
        tokens = in_short(max(float(run["trained_tokens"]) for run in runs), digits=6)
        rows.append([variant, f"{runs[0]['learning_rate']:g}", *cells, tokens, seconds])
    return markdown_table(["variant", "learning rate", *METRICS, "trained tokens", "seconds"], rows)


def tuning_table(scores: Mapping[str, Mapping[float, float]], *, metric: str) -> str:
    """The tuning score of every variant at every learning rate, the chosen one in bold."""
    rates = sorted({rate for given in scores.values() for rate in given})
    rows: list[list[str]] = []
    for variant, given in scores.items():
        chosen = best_rate(given, metric=metric)
        cells = [in_short(given.get(rate, float("nan")), digits=4) for rate in rates]
        marked = [
            f"**{cell}**" if rate == chosen else cell
            for rate, cell in zip(rates, cells, strict=True)
        ]
        rows.append([variant, *marked])
    return markdown_table([f"{metric} on the tuning rows", *(f"{r:g}" for r in rates)], rows)


def verdict_lines(results: Results, metric: str) -> list[str]:
    """One line for each pair of variants: the difference, and whether the seeds separate it."""
    values = {variant: by_seed(runs, metric) for variant, runs in results.items() if runs}
    pairs = list(_pairs(list(values)))
    differences = [difference(values[one], values[other]) for one, other in pairs]
    said = verdicts(differences)
    return [
        f"{one} - {other}: {with_interval(found.interval)}, {verdict}"
        for (one, other), found, verdict in zip(pairs, differences, said, strict=True)
    ]


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            yield one, other
