"""Several recipes, several seeds, the same work; a comparison that was interrupted goes on."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tutelage.core.errors import ConfigError
from tutelage.core.run_log import RunFolder, read_metrics, write_json
from tutelage.recipes.assemble import SharedWork
from tutelage.recipes.check import check_recipe
from tutelage.recipes.config import Recipe, from_tree, to_tree, varied
from tutelage.recipes.measure import read_object
from tutelage.recipes.narrator import Narrator, Silence
from tutelage.recipes.run import run_recipe
from tutelage.reports import ComparedRun, Comparison, Variant
from tutelage.reports.comparison import write_comparison
from tutelage.reports.statistics import mean_interval

_METRICS = (
    *("reward", "forward_kl", "top1_agreement", "perplexity", "reverse_kl"),
    *("written_tokens", "written_forward_kl", "written_reverse_kl", "generated_tokens"),
)
_LOWER_IS_BETTER = ("forward_kl", "perplexity")
_TUNED = "tuned.json"


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare, and how often to run each of it."""

    title: str
    variants: Mapping[str, Recipe]
    """Name to recipe. Rows, steps and seeds are the caller's to keep equal; see `unequal`."""
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...] = ()
    """Tried by every variant with the first seed; its best on the held-out rows is then used for
    all its seeds. Empty takes each recipe's own."""
    keep_students: bool = False
    """Keep each run's weights; off, only what the page needs is kept."""

    @classmethod
    def of(
        cls,
        recipes: Sequence[Recipe],
        *,
        num_seeds: int,
        learning_rates: Sequence[float] = (),
    ) -> "Plan":
        """A plan for recipes named as they name themselves, with seeds that follow theirs.

        Raises:
            ConfigError: no recipe, or two of one name.
        """
        names = [recipe.name for recipe in recipes]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"The recipes are named {names}; there must be one or more, each with a name of "
                "its own. Give them different names in `name`."
            )
        return cls(
            title=" against ".join(names) if len(names) > 1 else names[0],
            variants=dict(zip(names, recipes, strict=True)),
            seeds=tuple(recipes[0].seed + number for number in range(num_seeds)),
            learning_rates=tuple(learning_rates),
        )

    def unequal(self) -> list[str]:
        """Parts of the work in which the variants differ, for the page to admit."""
        parts: dict[str, Callable[[Recipe], object]] = {
            "rows": lambda r: (r.rollouts, r.evaluation.num_rows, r.evaluation.data),
            "student": lambda r: r.student,
            "teacher": lambda r: r.teacher,
            "steps": lambda r: (
                r.training.num_steps,
                r.training.rows_per_step,
                r.training.tokens_per_step,
            ),
        }
        found: list[str] = []
        for name, part in parts.items():
            values = [part(recipe) for recipe in self.variants.values()]
            if any(value != values[0] for value in values):
                found.append(f"The variants differ in {name}: this is not the same work.")
        return found


def compare_recipes(
    plan: Plan, folder: Path, *, narrator: Narrator | None = None
) -> tuple[Comparison, Path]:
    """Run every variant with every seed, and write compare.json and the page after each run.

    Finished runs in the folder are read, not run again; a run that was interrupted goes on.

    Raises:
        ConfigError: a variant contradicts itself, or holds nothing out to be compared by.
    """
    narrator = narrator or Silence()
    for name, recipe in plan.variants.items():
        check_recipe(recipe)
        if recipe.evaluation.num_rows == 0:
            raise ConfigError(
                f"evaluation.num_rows is 0 in {name}; it must be 1 or more, for variants are "
                "compared on held-out rows. Raise it."
            )
    shared = SharedWork(narrator)
    chosen = {
        name: _tuned(name, recipe, plan, folder, shared) for name, recipe in plan.variants.items()
    }
    runs: dict[str, list[ComparedRun]] = {name: [] for name in plan.variants}
    comparison, page = _write(plan, chosen, runs, folder) if not plan.seeds else (None, None)
    # Seed by seed, so that an interrupted comparison has as many of each variant.
    for seed in plan.seeds:
        for name, recipe in chosen.items():
            narrator.say(f"{name}, seed {seed}")
            one = folder / "runs" / name / f"seed-{seed}"
            runs[name].append(_run(recipe, seed, one, plan, shared))
            comparison, page = _write(plan, chosen, runs, folder)
    if comparison is None or page is None:
        raise ConfigError("seeds is empty; there must be one or more. Ask for more seeds.")
    return comparison, page


def _tuned(name: str, recipe: Recipe, plan: Plan, folder: Path, shared: SharedWork) -> Recipe:
    """The recipe with the learning rate that did best with the first seed."""
    if not plan.learning_rates:
        return recipe
    found: dict[float, float] = {}
    for rate in plan.learning_rates:
        shared.narrator.say(f"{name}, learning rate {rate:g}")
        candidate = varied(recipe, {"training": {"learning_rate": rate}})
        one = folder / "tuning" / name / f"{rate:g}"
        run = _run(candidate, plan.seeds[0], one, plan, shared)
        found[rate] = _score(run)
    best = min(found, key=lambda rate: found[rate])
    tried = {f"{rate:g}": score for rate, score in found.items()}
    told = {name: {"learning_rate": best, "tried": tried}}
    write_json(folder / _TUNED, {**read_object(folder / _TUNED), **told})
    return varied(recipe, {"training": {"learning_rate": best}})


def _score(run: ComparedRun) -> float:
    for name in _LOWER_IS_BETTER:
        value = run.final.get(name)
        if value is not None:
            return value
    # A run whose numbers are not finite must never be chosen.
    return float("inf")


def _run(recipe: Recipe, seed: int, folder: Path, plan: Plan, shared: SharedWork) -> ComparedRun:
    """One training, or what it left behind if it is finished."""
    tree = {name: value for name, value in to_tree(recipe).items() if name != "baselines"}
    one = from_tree({**tree, "seed": seed, "output": str(folder)})
    left = RunFolder(folder)
    if not left.summary.is_file():
        outcome = run_recipe(
            one, resume=left.recipe.is_file(), work=shared.for_recipe(one), narrator=shared.narrator
        )
        if outcome.interrupted:
            raise KeyboardInterrupt
        if not plan.keep_students:
            shutil.rmtree(left.student, ignore_errors=True)
    row = next(r for r in read_object(left.summary)["rows"] if r["name"] == "distilled")
    curve = [_numbers(point) for point in read_metrics(left.metrics, phase="eval")]
    return ComparedRun(
        seed=seed,
        final={name: row.get(name) for name in _METRICS if row.get(name) is not None},
        curve=curve,
        seconds=row.get("seconds"),
    )


def _numbers(point: Mapping[str, Any]) -> dict[str, int | float | None]:
    names = ("step", "seconds", *_METRICS)
    return {name: point[name] for name in names if name in point}


def _write(
    plan: Plan,
    chosen: Mapping[str, Recipe],
    runs: Mapping[str, list[ComparedRun]],
    folder: Path,
) -> tuple[Comparison, Path]:
    notes = plan.unequal() or ["Every variant had the same student, teacher, rows and steps."]
    if plan.learning_rates:
        grid = ", ".join(f"{rate:g}" for rate in plan.learning_rates)
        notes.append(
            f"Learning rates were chosen from {grid} for each variant, with seed {plan.seeds[0]}, "
            "on the held-out rows shown here."
        )
    known = {name for one in runs.values() for run in one for name in run.final}
    names = [name for name in _METRICS if name in known]
    comparison = Comparison(
        title=plan.title,
        metric_names=names or [_METRICS[0]],
        variants=[
            Variant(name=name, settings=_settings(chosen[name]), runs=runs[name])
            for name in plan.variants
        ],
        notes=notes,
        num_planned_seeds=len(plan.seeds) or None,
    )
    comparison.save(folder)
    return comparison, write_comparison(folder)


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over seeds, and half of its 95 % t interval; None for a single value."""
    interval = mean_interval(values)
    return interval.mean, interval.half_width


def _settings(recipe: Recipe) -> dict[str, Any]:
    ignored = {"seed", "output", "name", "description", "baselines"}
    tree = to_tree(recipe, defaults=True)
    return {name: value for name, value in tree.items() if name not in ignored}
