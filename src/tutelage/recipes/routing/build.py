"""From settings to routers that are ready, to who owns them, and to what is saved of them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Rollout, View
from tutelage.models import FAMILIES, CausalLM, LoadedModel
from tutelage.models.routers import (
    fold_biases,
    freeze_all_but_experts,
    freeze_routers,
    has_bias,
    install_biased_routers,
)
from tutelage.recipes.config import Recipe
from tutelage.students import LoadedStudent
from tutelage.text import collate
from tutelage.training.routers import ExpertTargetSettings, RouterOwner, RoutingSettings
from tutelage.training.routers.probe import Probe

TARGETS = "expert_targets.safetensors"
"""In a student's folder: how active each expert should be, beside the others of its layer."""
_MEASUREMENTS = 50


def refuse_dense(recipe: Recipe, shape: PretrainedConfig | None) -> None:
    """Find out before any weight is loaded.

    Raises:
        ConfigError: there are settings for routers and the student has none.
    """
    if recipe.routing is None or shape is None:
        return
    family = FAMILIES.get(shape.model_type)
    if family is not None and family.router is None:
        message = (
            f"routing is given, and the student is a dense {shape.model_type}; it must be a "
            "mixture of experts. Leave routing out, or make a student with experts."
        )
        raise ConfigError(message)


def prepare_routers(recipe: Recipe, student: LoadedModel) -> None:
    """Install biased routers and freeze what is not to be trained; nothing without settings.

    Raises:
        ConfigError: the student comes with a bias and none may be saved.
    """
    settings = recipe.routing
    if settings is None:
        return
    install_biased_routers(student.lm)
    if settings.save_bias == "refuse" and has_bias(student.lm):
        message = (
            f"routing.save_bias is refuse, and {student.source} comes with router biases; it must "
            "be code or fold. Change it."
        )
        raise ConfigError(message)
    if settings.mode != "route":
        freeze_routers(student.lm)
    if settings.trains_experts_only:
        freeze_all_but_experts(student.lm)


def make_router_owner(
    recipe: Recipe, student: LoadedModel, rows: Sequence[Rollout], device: torch.device
) -> RouterOwner | None:
    """Who hears and moves the student's routers; None where the recipe leaves them alone."""
    settings = recipe.routing
    if settings is None:
        return None
    targets = None
    if settings.targets is not None:
        targets = read_targets(_targets_file(settings.targets, recipe))
    return RouterOwner(
        student.lm,
        settings,
        seed=recipe.seed,
        targets=targets,
        domains=_domains(settings, rows),
        probe=_probe(recipe, settings, student.lm, rows, device),
    )


def read_targets(path: Path) -> Float[Tensor, "layer E"]:
    """How active experts should be, as whoever made the student has written it.

    Raises:
        DataError: there is no such file, or it does not hold shares.
    """
    try:
        shares = load_file(path)["shares"]
    except (OSError, KeyError, SafetensorError) as error:
        message = (
            f"routing.targets: {path} is not readable ({error}); it must be a safetensors file "
            "with `shares`, one row a layer and one column an expert. Check the path."
        )
        raise DataError(message) from error
    sums = shares.double().sum(dim=-1)
    if shares.dim() != 2 or not bool(((sums - 1).abs() < 1e-3).all()):  # noqa: PLR2004 - rounding
        message = (
            f"routing.targets: the shares in {path} add up to something else than 1 in a layer; "
            "they must be shares. Write them anew."
        )
        raise DataError(message)
    return shares


def student_to_save(
    recipe: Recipe, lm: CausalLM, views: Sequence[View]
) -> tuple[CausalLM, str | None]:
    """The student as it goes to disk, and what is to be said of it.

    Args:
        views: rows to fold biases on, where the settings say so.
    """
    settings = recipe.routing
    if settings is None or settings.save_bias != "fold" or not has_bias(lm):
        return lm, None
    folded, report = fold_biases(lm, views)
    return folded, str(report)


def _targets_file(settings: ExpertTargetSettings, recipe: Recipe) -> Path:
    if settings.file is not None:
        return Path(settings.file).expanduser()
    assert isinstance(recipe.student, LoadedStudent)  # noqa: S101  the recipe's checks have looked
    return Path(recipe.student.model).expanduser() / TARGETS


def _domains(settings: RoutingSettings, rows: Sequence[Rollout]) -> list[str]:
    column = settings.domain_column
    if column is None:
        return []
    found = sorted({str(row.prompt.row[column]) for row in rows if column in row.prompt.row})
    if not found:
        message = (
            f"routing.domain_column is {column}, which no row has; it must be a column of the "
            "rows. Correct it, or leave it out."
        )
        raise DataError(message)
    return found


def _probe(
    recipe: Recipe,
    settings: RoutingSettings,
    lm: CausalLM,
    rows: Sequence[Rollout],
    device: torch.device,
) -> Probe | None:
    chosen = list(rows[: settings.probe_rows])
    if not chosen:
        return None
    every = settings.probe_every or max(1, recipe.training.num_steps // _MEASUREMENTS)
    half = torch.bfloat16 if recipe.training.precision == "bf16" else None
    view = collate(chosen, device=device).student
    return Probe(lm, view, every=every, dtype=half)
