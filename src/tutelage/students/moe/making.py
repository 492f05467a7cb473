"""From a dense model and a plan to a mixture of experts: see, split, route, fill."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.models import CausalLM
from tutelage.students.clustering import Quality
from tutelage.students.moe.activations import mean_activations, strongest_marks
from tutelage.students.moe.neurons import feed_forwards
from tutelage.students.moe.router_rows import router_rows
from tutelage.students.moe.settings import (
    ClusteredSplit,
    CoActivationSplit,
    FittedRouter,
    Upcycling,
)
from tutelage.students.moe.shape import ExpertShape, shape_of, upcycled_config
from tutelage.students.moe.splits import Marks, groups_of_layer
from tutelage.students.moe.upcycle import Groups, upcycle

_LOG = logging.getLogger(__name__)

_LEAST_SILHOUETTE = 0.0
_MOST_VARIATION = 0.1


@final
@dataclass(frozen=True, kw_only=True)
class Upcycled:
    """A mixture of experts, and how it came about."""

    lm: CausalLM
    shape: ExpertShape
    groups: tuple[Groups, ...]
    """Which neurons went where, for each layer."""
    quality: tuple[Quality, ...]
    """How good the clusters of each layer are; empty where nothing was clustered."""


def make_upcycled(
    dense: CausalLM,
    plan: Upcycling,
    calibration: Sequence[TokenBatch] = (),
    *,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Upcycled:
    """The mixture of experts that the plan asks for; the same for the same seed.

    Args:
        calibration: rows on which neurons are watched, where the plan looks at what they do.
        advance: told how many layers are split.

    Raises:
        ModelError: no mixture-of-experts family computes what this family does.
        ConfigError: so many experts cannot be had, or the host has no place for what is asked.
        DataError: the plan needs calibration rows, and there are none.
    """
    shape = shape_of(dense.config, plan)
    # What the host has no place for is said before anything is clustered.
    upcycled_config(dense.config, plan)
    if needs_calibration(plan) and not any(batch.num_tokens for batch in calibration):
        fits = isinstance(plan.router, FittedRouter)
        what = "router.kind fitted" if fits else f"split.kind {plan.split.kind}"
        what = "student.shared" if plan.shared else what
        message = (
            f"{what} looks at what neurons do, and there are no calibration rows; there must be "
            "at least one. Give some, or choose another."
        )
        raise DataError(message)
    layers = feed_forwards(dense)
    strength = (
        mean_activations(dense, calibration, absolute=True)
        if shape.num_shared
        else [None] * len(layers)
    )
    marks = _marks(dense, plan, calibration) or [None] * len(layers)
    groups: list[Groups] = []
    quality: list[Quality] = []
    for at, neurons in enumerate(layers):
        group, found = groups_of_layer(
            neurons,
            plan,
            shape,
            strength=strength[at],
            marks=marks[at],
            seed=seed_for(seed, "split", at),
        )
        groups.append(group)
        if found is not None:
            quality.append(found)
        if advance is not None:
            advance(at + 1)
    if isinstance(plan.split, ClusteredSplit):
        look_over(quality, plan.split)
    routers = router_rows(dense, groups, plan, calibration, seed=seed)
    lm = upcycle(dense, plan, groups, routers, seed=seed)
    return Upcycled(lm=lm, shape=shape, groups=tuple(groups), quality=tuple(quality))


def needs_calibration(plan: Upcycling) -> bool:
    """Whether the plan looks at what neurons do, and not at their weights alone."""
    return (
        bool(plan.shared)
        or isinstance(plan.split, CoActivationSplit)
        or isinstance(plan.router, FittedRouter)
    )


def _marks(
    dense: CausalLM, plan: Upcycling, calibration: Sequence[TokenBatch]
) -> list[Marks] | None:
    if not isinstance(plan.split, CoActivationSplit):
        return None
    marked = strongest_marks(
        dense,
        calibration,
        marks_per_token=plan.split.marks_per_token,
        max_tokens=plan.split.max_tokens,
    )
    return [marks.to(torch.float32) for marks in marked]


def look_over(quality: Sequence[Quality], split: ClusteredSplit) -> None:
    """Say, or refuse, that clusters are hardly any; one line for all layers."""
    poor = [
        (at, text)
        for at, one in enumerate(quality)
        for text in one.complaints(
            least_silhouette=_LEAST_SILHOUETTE, most_variation=_MOST_VARIATION
        )
    ]
    if not poor or split.poor_clusters == "ignore":
        return
    layer, text = poor[0]
    num = len({at for at, _ in poor})
    found = f"The clusters of {num} of {len(quality)} layers are poor, first layer {layer}: {text}"
    if split.poor_clusters == "refuse":
        message = (
            f"{found}; they must be better where split.poor_clusters is refuse. Compare with "
            "split.kind random, cluster other rows, or set it to warn."
        )
        raise ConfigError(message)
    _LOG.warning("%s. Compare with split.kind random before you rely on them.", found)
