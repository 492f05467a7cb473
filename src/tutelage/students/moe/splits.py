"""Which neurons share an expert: every way of splitting, by its settings."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.seeds import seed_for
from tutelage.students.clustering import (
    Clusters,
    Quality,
    Search,
    Sizes,
    Solver,
    balanced_k_means,
    constrained_k_means,
    merged_k_means,
    quality_of,
)
from tutelage.students.moe.neurons import FeedForward, neuron_rows
from tutelage.students.moe.settings import (
    ClusteredSplit,
    CoActivationSplit,
    ContiguousSplit,
    RandomSplit,
    Upcycling,
)
from tutelage.students.moe.shape import ExpertShape
from tutelage.students.moe.upcycle import Groups

_NUM_PROBES = 512

Marks: TypeAlias = Float[Tensor, "F L"]


def groups_of_layer(
    neurons: FeedForward,
    plan: Upcycling,
    shape: ExpertShape,
    *,
    strength: Float[Tensor, " F"] | None = None,
    marks: Marks | None = None,
    seed: int,
) -> tuple[Groups, Quality | None]:
    """The neurons of one layer's experts, and how good the clusters are where there are any.

    Args:
        strength: how active each neuron is; the shared ones are the most active.
        marks: on which tokens each neuron is among the strongest, for `co_activation`.
    """
    num = neurons.num_neurons
    if shape.copied:
        everything = torch.arange(num)
        copies = (everything,) * shape.num_experts
        return Groups(experts=copies, shared=everything[:0]), None
    shared = _strongest(strength, shape.num_shared)
    free = torch.ones(num, dtype=torch.bool)
    free[shared] = False
    rest = free.nonzero()[:, 0]
    sizes = Sizes(num_clusters=shape.num_experts, smallest=shape.smallest, largest=shape.largest)
    match plan.split:
        case ClusteredSplit() as split:
            rows = neuron_rows(neurons, split.rows, normalised=split.normalised)[rest]
            clusters, quality = clustered(rows, split, sizes, seed)
        case CoActivationSplit(max_iterations=max_iterations):
            assert marks is not None  # noqa: S101 - whoever asks has measured them
            rows = marks[rest].float()
            search = Search(seed=seed, max_iterations=max_iterations)
            clusters = balanced_k_means(rows, sizes, search)
            quality = quality_of(rows, clusters, num_probes=_NUM_PROBES)
        case RandomSplit():
            generator = torch.Generator().manual_seed(seed_for(seed, "deal"))
            order = rest[torch.randperm(len(rest), generator=generator)]
            return _dealt(order, shape, shared), None
        case _:
            assert isinstance(plan.split, ContiguousSplit)  # noqa: S101 - copies were met above
            return _dealt(rest, shape, shared), None
    experts = tuple(rest[members] for members in clusters.members)
    return Groups(experts=experts, shared=shared), quality


def clustered(
    rows: Float[Tensor, "F X"], split: ClusteredSplit, sizes: Sizes, seed: int
) -> tuple[Clusters, Quality]:
    """Groups of alike rows, found in the way that the settings name, and how good they are."""
    search = Search(seed=seed, num_starts=split.num_starts, max_iterations=split.max_iterations)
    solve: Solver = balanced_k_means if split.solver == "lloyd" else constrained_k_means
    if split.merge_from is None:
        clusters = solve(rows, sizes, search)
    else:
        clusters = merged_k_means(rows, sizes, split.merge_from, search, solve=solve)
    return clusters, quality_of(rows, clusters, num_probes=_NUM_PROBES)


def _dealt(order: Int[Tensor, " rest"], shape: ExpertShape, shared: Int[Tensor, " _"]) -> Groups:
    """As many to each expert, in this order."""
    parts: Sequence[Tensor] = order.tensor_split(shape.num_experts)
    return Groups(experts=tuple(part.sort().values for part in parts), shared=shared)


def _strongest(strength: Float[Tensor, " F"] | None, num: int) -> Int[Tensor, " _"]:
    if num == 0:
        return torch.arange(0)
    assert strength is not None  # noqa: S101 - whoever asks for shared neurons has measured them
    order = torch.argsort(strength, descending=True, stable=True)
    return order[:num].sort().values
