"""Routers of a mixture of experts that exists already, from the neurons of a dense teacher.

Expert weights stay as they are. Each layer's router gets the centroids of the teacher layer it
learns from, carried from the teacher's hidden states into the student's by a ridge map on the
same tokens, so that `x_student @ row` is about `x_teacher @ centroid`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import DataError, ModelError
from tutelage.core.records import TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.models import CausalLM, anatomy_of, layers_of
from tutelage.students.clustering import Quality, Sizes, balanced_assignment
from tutelage.students.moe import (
    ClusteredSplit,
    Groups,
    Rerouting,
    RidgeFit,
    centroid_rows,
    clustered,
    feed_forwards,
    inputs_of,
    look_over,
    neuron_rows,
    rescaled,
    routers_of,
    teacher_layer,
)


@final
@dataclass(frozen=True, kw_only=True)
class RoutedLayer:
    """What one layer's router was made from."""

    origin: int
    """The teacher's layer."""
    order: Int[Tensor, " E"]
    """The cluster that each expert has got."""
    experts: tuple[Int[Tensor, " _"], ...]
    """The teacher's neurons behind each expert."""
    explained: float
    """How much of the teacher's hidden states the map from the student's accounts for: 1 is all."""


def reroute(
    student: CausalLM,
    teacher: CausalLM,
    batches: Sequence[TokenBatch],
    settings: Rerouting,
    *,
    seed: int = 0,
) -> list[RoutedLayer]:
    """Overwrite the routers of a mixture of experts by its teacher's clusters.

    Both models read the student's view of the rows.

    Returns:
        For each layer of the student, what its router was made from.

    Raises:
        ModelError: the student has no router, or the teacher does not know its tokens.
        DataError: there is no token to look at.

    Source: PADD, arXiv:2606.10369, section 2.2; the map, the lengths and the matching are ours.
    """
    routers = [router.get_parameter("weight") for router in routers_of(student)]
    _check_tokens(teacher, batches)
    layers = feed_forwards(teacher)
    origin = [
        teacher_layer(at, num_student=len(routers), num_teacher=len(layers))
        for at in range(len(routers))
    ]
    clusters = _clusters(teacher, set(origin), routers[0].shape[0], settings.split, seed)
    fits = [RidgeFit() for _ in routers]
    likings = [_Correlation() for _ in routers]
    for batch in batches:
        seen_T, seen_S = _inputs(teacher, batch), _inputs(student, batch)
        for at, source in enumerate(origin):
            fits[at].add(seen_S[at], seen_T[source])
            if settings.match == "hungarian":
                mass = _masses(teacher, source, seen_T[source], clusters[source])
                liked = torch.softmax(seen_S[at].float() @ routers[at].float().T, dim=-1)
                likings[at].add(liked, mass)
    made: list[RoutedLayer] = []
    for at, weight in enumerate(routers):
        source = origin[at]
        groups = Groups(experts=clusters[source], shared=torch.arange(0))
        centroid = centroid_rows(layers[source], groups, rows=settings.split.rows)
        found = fits[at].solve(settings.ridge)
        carried = (found @ centroid.double().cpu().T).T.float()
        order = torch.arange(len(carried))
        if settings.match == "hungarian":
            order = likings[at].best_match()
        experts = tuple(clusters[source][number] for number in order.tolist())
        explained = fits[at].explained(found)
        made.append(RoutedLayer(origin=source, order=order, experts=experts, explained=explained))
        placed = carried[order]
        if settings.keep_norm:
            placed = rescaled(placed, float(weight.detach().float().norm(dim=1).mean()))
        with torch.no_grad():
            weight.copy_(placed)
    return made


@final
class _Correlation:
    """Pearson's, between every column of one thing and every column of another, streamed."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._num = 0

    def add(self, one: Float[Tensor, "L E"], other: Float[Tensor, "L E"]) -> None:
        a, b = one.detach().double().cpu(), other.detach().double().cpu()
        new = [a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0), a.T @ b]
        self._sums = [x + y for x, y in zip(self._sums, new, strict=True)] if self._sums else new
        self._num += len(a)

    def values(self) -> Float[Tensor, "E E"]:
        """Row: column of the first; 0 for one that never changes."""
        mean_a, mean_b, square_a, square_b, product = (total / self._num for total in self._sums)
        spread_a = (square_a - mean_a.square()).clamp(min=0).sqrt()
        spread_b = (square_b - mean_b.square()).clamp(min=0).sqrt()
        covariance = product - mean_a[:, None] * mean_b
        return covariance / (spread_a[:, None] * spread_b).clamp(min=1e-30)

    def best_match(self) -> Int[Tensor, " E"]:
        """For each column of the first, one of the second: the largest sum of correlations."""
        found = self.values()
        return balanced_assignment(-found, [1] * found.shape[1])[0]


def _clusters(
    teacher: CausalLM, wanted: Collection[int], num_experts: int, split: ClusteredSplit, seed: int
) -> dict[int, tuple[Int[Tensor, " _"], ...]]:
    """The teacher's neurons of each cluster, for each of those layers; all neurons are kept."""
    found: dict[int, tuple[Tensor, ...]] = {}
    quality: list[Quality] = []
    layers = feed_forwards(teacher)
    for at in sorted(wanted):
        neurons = layers[at]
        rows = neuron_rows(neurons, split.rows, normalised=split.normalised)
        sizes = Sizes.within(neurons.num_neurons, num_experts, split.size_tolerance)
        clusters, how_good = clustered(rows, split, sizes, seed_for(seed, "split", at))
        found[at] = clusters.members
        quality.append(how_good)
    look_over(quality, split)
    return found


def _masses(
    teacher: CausalLM, layer: int, x: Float[Tensor, "L W"], members: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, "L E"]:
    """How much each cluster's neurons do: the sum of their activations' sizes."""
    block = layers_of(teacher.model)[layer].get_submodule(anatomy_of(teacher.config).mlp)
    gate, up = block.get_submodule("gate_proj"), block.get_submodule("up_proj")
    with torch.no_grad():
        size = (block.get_submodule("act_fn")(gate(x)) * up(x)).float().abs()
    return torch.stack([size[:, group].sum(dim=1) for group in members], dim=1)


@torch.no_grad()
def _inputs(lm: CausalLM, batch: TokenBatch) -> list[Float[Tensor, "L D"]]:
    """What every layer's feed-forward part is given for the batch's tokens."""
    mlp = anatomy_of(lm.config).mlp
    blocks = [layer.get_submodule(mlp) for layer in layers_of(lm.model)]
    was_training = lm.training
    try:
        with inputs_of(blocks) as seen:
            CausalLM(lm.model, layout="packed").eval().hidden(batch.student)
    finally:
        lm.train(was_training)
    return [seen[at] for at in range(len(blocks))]


def _check_tokens(teacher: CausalLM, batches: Sequence[TokenBatch]) -> None:
    if not any(batch.num_tokens for batch in batches):
        message = (
            "The calibration rows are empty; there must be at least one, to map the hidden states "
            "of one model to the other's. Give some rows."
        )
        raise DataError(message)
    largest = max(int(batch.student.input_ids.max()) for batch in batches if batch.num_tokens)
    if largest >= teacher.config.vocab_size:
        message = (
            f"The student reads token {largest}, and the teacher has "
            f"{teacher.config.vocab_size}; both must read the same tokens. Choose a teacher with "
            "the student's tokenizer."
        )
        raise ModelError(message)
