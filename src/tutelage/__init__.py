"""Tutelage: distil large language models with losses that are proved right.

The same objects as the command line's, imported when first used:

    from tutelage import Trainer, load_model, from_settings, run_recipe
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.core.errors import TutelageError
    from tutelage.core.records import Prompt, Rollout, TokenBatch
    from tutelage.core.targets import HiddenTarget, LogitsTarget
    from tutelage.evaluation import evaluate_divergence
    from tutelage.models import CausalLM, LoadedModel, load_model, save_model
    from tutelage.objectives import Objective, Taid, from_settings
    from tutelage.recipes import Recipe, load, run_recipe
    from tutelage.rollouts import DatasetRollouts, read_rows
    from tutelage.students import build_student
    from tutelage.teachers import LiveTeacher, Teacher
    from tutelage.text import Formatter, collate, cut
    from tutelage.training import Trainer, TrainingSettings

_HOMES = {
    "core.errors": ("TutelageError",),
    "core.records": ("Prompt", "Rollout", "TokenBatch"),
    "core.targets": ("HiddenTarget", "LogitsTarget"),
    "evaluation": ("evaluate_divergence",),
    "models": ("CausalLM", "LoadedModel", "load_model", "save_model"),
    "objectives": ("Objective", "Taid", "from_settings"),
    "recipes": ("Recipe", "load", "run_recipe"),
    "rollouts": ("DatasetRollouts", "read_rows"),
    "students": ("build_student",),
    "teachers": ("LiveTeacher", "Teacher"),
    "text": ("Formatter", "collate", "cut"),
    "training": ("Trainer", "TrainingSettings"),
}

__all__ = [
    "CausalLM",
    "DatasetRollouts",
    "Formatter",
    "HiddenTarget",
    "LiveTeacher",
    "LoadedModel",
    "LogitsTarget",
    "Objective",
    "Prompt",
    "Recipe",
    "Rollout",
    "Taid",
    "Teacher",
    "TokenBatch",
    "Trainer",
    "TrainingSettings",
    "TutelageError",
    "build_student",
    "collate",
    "cut",
    "evaluate_divergence",
    "from_settings",
    "load",
    "load_model",
    "read_rows",
    "run_recipe",
    "save_model",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"tutelage.{home}"), name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
