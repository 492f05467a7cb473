"""Whole runs: the tree of settings, its checks, its assembly, and the presets that ship with us.

Names are imported when first used, so that `tutelage --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.recipes.caching.make import CacheMade, CachePlan, make_cache
    from tutelage.recipes.check import check_recipe
    from tutelage.recipes.compare import Plan, compare_recipes, mean_and_half_width
    from tutelage.recipes.config import (
        Recipe,
        alone,
        choices,
        from_tree,
        load,
        to_tree,
        to_yaml,
        varied,
    )
    from tutelage.recipes.doctor import Finding, examine
    from tutelage.recipes.making.prune import PruneOutcome, prune_model
    from tutelage.recipes.making.request import Source, student_of
    from tutelage.recipes.making.reroute import RerouteOutcome, reroute_model
    from tutelage.recipes.making.upcycle import UpcycleOutcome, upcycle_model
    from tutelage.recipes.outline import Outline, outline_of
    from tutelage.recipes.remote.serve import ServePlan, serve_model
    from tutelage.recipes.run import Outcome, evaluate_folder, rebuild_page, run_recipe

_HOMES = {
    "CacheMade": "caching.make",
    "CachePlan": "caching.make",
    "Finding": "doctor",
    "Outcome": "run",
    "Outline": "outline",
    "Plan": "compare",
    "PruneOutcome": "making.prune",
    "Recipe": "config",
    "RerouteOutcome": "making.reroute",
    "ServePlan": "remote.serve",
    "Source": "making.request",
    "UpcycleOutcome": "making.upcycle",
    "alone": "config",
    "check_recipe": "check",
    "choices": "config",
    "compare_recipes": "compare",
    "evaluate_folder": "run",
    "examine": "doctor",
    "from_tree": "config",
    "load": "config",
    "make_cache": "caching.make",
    "mean_and_half_width": "compare",
    "outline_of": "outline",
    "prune_model": "making.prune",
    "rebuild_page": "run",
    "reroute_model": "making.reroute",
    "run_recipe": "run",
    "serve_model": "remote.serve",
    "student_of": "making.request",
    "to_tree": "config",
    "to_yaml": "config",
    "upcycle_model": "making.upcycle",
    "varied": "config",
}

__all__ = [
    "CacheMade",
    "CachePlan",
    "Finding",
    "Outcome",
    "Outline",
    "Plan",
    "PruneOutcome",
    "Recipe",
    "RerouteOutcome",
    "ServePlan",
    "Source",
    "UpcycleOutcome",
    "alone",
    "check_recipe",
    "choices",
    "compare_recipes",
    "evaluate_folder",
    "examine",
    "from_tree",
    "load",
    "make_cache",
    "mean_and_half_width",
    "outline_of",
    "prune_model",
    "rebuild_page",
    "reroute_model",
    "run_recipe",
    "serve_model",
    "student_of",
    "to_tree",
    "to_yaml",
    "upcycle_model",
    "varied",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
