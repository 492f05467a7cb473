"""How the routers of a new mixture of experts begin: one row for each expert of a layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.models import CausalLM
from tutelage.students.moe.neurons import (
    FeedForward,
    feed_forwards,
    group_means,
    neuron_rows,
)
from tutelage.students.moe.ridge import fitted_rows
from tutelage.students.moe.settings import (
    CentroidRouter,
    ClusteredSplit,
    Copies,
    DropCopies,
    FittedRouter,
    RandomRouter,
    RouterSettings,
    RowsOf,
    Upcycling,
)
from tutelage.students.moe.upcycle import Groups


def router_of(plan: Upcycling) -> RouterSettings:
    """What is asked, or what suits the experts where nothing is."""
    if plan.router is not None:
        return plan.router
    copied = isinstance(plan.split, Copies | DropCopies)
    return RandomRouter() if copied else CentroidRouter()


def router_rows(
    dense: CausalLM,
    groups: Sequence[Groups],
    plan: Upcycling,
    calibration: Sequence[TokenBatch],
    *,
    seed: int,
) -> list[Float[Tensor, "E D"]]:
    """The rows of every layer's router, in float32."""
    settings, num_experts, layers = router_of(plan), plan.experts, feed_forwards(dense)
    match settings:
        case FittedRouter(ridge=ridge, mean_norm=mean_norm):
            found = fitted_rows(dense, groups, calibration, ridge=ridge)
            return found if mean_norm is None else [rescaled(rows, mean_norm) for rows in found]
        case CentroidRouter(mean_norm=mean_norm):
            found = [
                centroid_rows(neurons, group, rows=_rows_of(plan))
                for neurons, group in zip(layers, groups, strict=True)
            ]
            return found if mean_norm is None else [rescaled(rows, mean_norm) for rows in found]
        case RandomRouter(std=std):
            generator = torch.Generator().manual_seed(seed_for(seed, "routers"))
            return [
                torch.randn(num_experts, neurons.gate.shape[1], generator=generator) * std
                for neurons in layers
            ]
        case _:
            return [torch.zeros(num_experts, neurons.gate.shape[1]) for neurons in layers]


def centroid_rows(
    neurons: FeedForward, groups: Groups, *, rows: RowsOf = "gate_proj"
) -> Float[Tensor, "E D"]:
    """Each expert's mean row, raw: x times it is the mean of x times its neurons' rows.

    Neurons that were compared by both matrices are represented by their gates.
    """
    matrix: RowsOf = "gate_proj" if rows == "concat" else rows
    return group_means(neuron_rows(neurons, matrix), groups.experts)


def rescaled(rows: Float[Tensor, "E D"], mean_norm: float) -> Float[Tensor, "E D"]:
    """The rows times one number, so that their mean length is this; rows of zeros stay."""
    norm = rows.norm(dim=1).mean()
    return rows if norm == 0 else rows * (mean_norm / norm)


def _rows_of(plan: Upcycling) -> RowsOf:
    return plan.split.rows if isinstance(plan.split, ClusteredSplit) else "gate_proj"
