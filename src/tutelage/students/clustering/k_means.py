"""K-means whose clusters have the sizes they are asked for.

    minimise  sum_k |row_k - centroid of its cluster|^2   such that cluster e has sizes[e] rows

by turns: the cheapest assignment with these sizes, exactly, then the mean of every cluster.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.seeds import seed_for
from tutelage.students.clustering.assignment import balanced_assignment


@final
@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Which cluster every row is in."""

    label: Int[Tensor, " F"]
    centroid: Float[Tensor, "E X"]
    """The mean row of each cluster."""
    inertia: float
    """Sum of squared distances of rows to their centroids."""
    course: tuple[float, ...]
    """The inertia after each round, never rising."""

    @property
    def sizes(self) -> list[int]:
        """Rows in each cluster."""
        return torch.bincount(self.label, minlength=self.centroid.shape[0]).tolist()

    @property
    def members(self) -> tuple[Int[Tensor, " _"], ...]:
        """The rows of each cluster, ascending."""
        return tuple((self.label == at).nonzero()[:, 0] for at in range(self.centroid.shape[0]))


@final
@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many rows a cluster may have."""

    num_clusters: int
    smallest: int
    largest: int

    @staticmethod
    def equal(num_rows: int, num_clusters: int) -> "Sizes":
        """All the same, or differing by one where they must."""
        return Sizes(
            num_clusters=num_clusters,
            smallest=num_rows // num_clusters,
            largest=-(-num_rows // num_clusters),
        )

    @staticmethod
    def within(num_rows: int, num_clusters: int, tolerance: float) -> "Sizes":
        """At most that fraction of the fair size away from it, and at least one row each.

        Where the fair size is no whole number, its two neighbours are always allowed.
        """
        fair = num_rows / num_clusters
        smallest = min(math.floor(fair), math.ceil(fair * (1 - tolerance)))
        largest = max(math.ceil(fair), math.floor(fair * (1 + tolerance)))
        return Sizes(num_clusters=num_clusters, smallest=max(1, smallest), largest=largest)

    def near(self, wished: Sequence[int]) -> list[int]:
        """Sizes within the bounds that add up to as many, changed as little as may be.

        What is over or missing is taken from or given to the largest or smallest first, one at a
        time; of equals, the earlier cluster.
        """
        total = sum(wished)
        sizes = [min(max(wish, self.smallest), self.largest) for wish in wished]
        while (missing := total - sum(sizes)) != 0:
            if missing > 0:
                open_ = [at for at, size in enumerate(sizes) if size < self.largest]
                sizes[min(open_, key=lambda at: (sizes[at], at))] += 1
            else:
                open_ = [at for at, size in enumerate(sizes) if size > self.smallest]
                sizes[max(open_, key=lambda at: (sizes[at], -at))] -= 1
        return sizes


@final
@dataclass(frozen=True, kw_only=True)
class Search:
    """How hard to look."""

    seed: int = 0
    num_starts: int = 1
    max_iterations: int = 100


Solver: TypeAlias = Callable[[Tensor, Sizes, Search], Clusters]
"""A k-means with sizes."""


def balanced_k_means(rows: Float[Tensor, "F X"], sizes: Sizes, search: Search) -> Clusters:
    """The best of some runs of k-means with sizes; the same for the same seed.

    Where sizes may differ, each round asks for those that free choice would give, cut to the
    bounds. A round that does not lower the inertia is the last.

    Raises:
        ConfigError: rows cannot be divided so.

    Source: Bradley, Bennett and Demiriz 2000, Constrained K-Means Clustering, MSR-TR-2000-65.
    """
    num_rows = rows.shape[0]
    if not sizes.num_clusters * sizes.smallest <= num_rows <= sizes.num_clusters * sizes.largest:
        message = (
            f"{num_rows} neurons are to be divided into {sizes.num_clusters} groups of "
            f"{sizes.smallest} to {sizes.largest}; there must be as many as fit. Change the number "
            "of groups or their sizes."
        )
        raise ConfigError(message)
    rows = rows.detach().float()
    found = [
        _run(rows, sizes, start(rows, sizes.num_clusters, seed), search.max_iterations)
        for seed in (seed_for(search.seed, "start", at) for at in range(search.num_starts))
    ]
    return min(found, key=lambda clusters: clusters.inertia)


def start(rows: Float[Tensor, "F X"], num_clusters: int, seed: int) -> Float[Tensor, "E X"]:
    """First centroids, far from each other: greedy k-means++.

    Each is a row drawn in proportion to its squared distance from those before; of some such
    draws the one that leaves the least distance is taken.

    Source: Arthur and Vassilvitskii 2007, k-means++; the greedy draws as in scikit-learn.
    """
    generator = torch.Generator().manual_seed(seed)
    num_draws = 2 + num_clusters.bit_length()
    square = rows.square().sum(dim=1)
    first = int(torch.randint(rows.shape[0], (1,), generator=generator))
    chosen = [first]
    nearest = _distances(rows, square, rows[first : first + 1])[:, 0]
    for _ in range(1, num_clusters):
        weight = nearest.double()
        # Rows that are all alike have no distance to draw by.
        weight = weight if float(weight.sum()) > 0 else torch.ones_like(weight)
        total = weight.cumsum(dim=0)
        drawn = torch.rand(num_draws, generator=generator, dtype=torch.float64) * total[-1]
        draws = torch.searchsorted(total, drawn).clamp(max=len(weight) - 1)
        closer = torch.minimum(_distances(rows, square, rows[draws]), nearest[:, None])
        best = int(closer.double().sum(dim=0).argmin())
        chosen.append(int(draws[best]))
        nearest = closer[:, best]
    return rows[torch.tensor(chosen)]


def _run(
    rows: Float[Tensor, "F X"], sizes: Sizes, centroid: Float[Tensor, "E X"], max_iterations: int
) -> Clusters:
    square = rows.square().sum(dim=1)
    label, prices, course = torch.zeros(0, dtype=torch.long), None, list[float]()
    for _ in range(max_iterations):
        cost = _distances(rows, square, centroid)
        wanted = sizes.near(torch.bincount(cost.argmin(dim=1), minlength=len(centroid)).tolist())
        new, prices = balanced_assignment(cost, wanted, prices)
        moved = _means(rows, new, len(centroid))
        inertia = _inertia(rows, new, moved)
        # By rounding alone the same clusters might seem a little better again and again.
        if course and inertia >= course[-1]:
            break
        unchanged = len(label) and torch.equal(new, label)
        label, centroid = new, moved
        course.append(inertia)
        if unchanged:
            break
    return Clusters(label=label, centroid=centroid, inertia=course[-1], course=tuple(course))


def clusters_of(
    rows: Float[Tensor, "F X"], label: Int[Tensor, " F"], num_clusters: int
) -> Clusters:
    """The record of an assignment that somebody else has made."""
    centroid = _means(rows.float(), label, num_clusters)
    inertia = _inertia(rows.float(), label, centroid)
    return Clusters(label=label, centroid=centroid, inertia=inertia, course=(inertia,))


def squared_distances(
    rows: Float[Tensor, "F X"], centroid: Float[Tensor, "E X"]
) -> Float[Tensor, "F E"]:
    """From every row to every centroid, at least 0."""
    return _distances(rows, rows.square().sum(dim=1), centroid)


def _distances(
    rows: Float[Tensor, "F X"], square: Float[Tensor, " F"], centroid: Float[Tensor, "E X"]
) -> Float[Tensor, "F E"]:
    product = rows @ centroid.T
    return (square[:, None] - 2 * product + centroid.square().sum(dim=1)).clamp(min=0)


def _means(
    rows: Float[Tensor, "F X"], label: Int[Tensor, " F"], num_clusters: int
) -> Float[Tensor, "E X"]:
    total = torch.zeros(num_clusters, rows.shape[1], dtype=rows.dtype).index_add_(0, label, rows)
    return total / torch.bincount(label, minlength=num_clusters).clamp(min=1)[:, None]


def _inertia(
    rows: Float[Tensor, "F X"], label: Int[Tensor, " F"], centroid: Float[Tensor, "E X"]
) -> float:
    """Directly from the differences, a slab of rows at a time: no cancellation, little memory."""
    slab = max(1, 2**22 // max(1, rows.shape[1]))
    return sum(
        float((rows[at : at + slab] - centroid[label[at : at + slab]]).double().square().sum())
        for at in range(0, rows.shape[0], slab)
    )
