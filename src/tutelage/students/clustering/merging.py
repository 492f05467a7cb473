"""More clusters than are wanted, then the nearest ones together: UPGMA on their centroids."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.students.clustering.assignment import balanced_assignment
from tutelage.students.clustering.k_means import (
    Clusters,
    Search,
    Sizes,
    Solver,
    balanced_k_means,
    clusters_of,
    squared_distances,
)


def upgma(centroid: Float[Tensor, "M X"], num_groups: int) -> Int[Tensor, " M"]:
    """The group of each of M points, the two nearest groups joined until so many are left.

    How far two groups are from each other is the mean Euclidean distance between their points.
    Groups are numbered by their first point.

    Source: Sokal and Michener 1958 (average linkage).
    """
    num_points = centroid.shape[0]
    distance = torch.cdist(centroid.double(), centroid.double())
    distance.fill_diagonal_(torch.inf)
    size = torch.ones(num_points, dtype=torch.float64)
    group = torch.arange(num_points)
    for _ in range(num_points - num_groups):
        at = int(distance.argmin())
        kept, gone = sorted((at // num_points, at % num_points))
        mean = (size[kept] * distance[kept] + size[gone] * distance[gone]) / (
            size[kept] + size[gone]
        )
        distance[kept], distance[:, kept] = mean, mean
        distance[gone], distance[:, gone] = torch.inf, torch.inf
        distance[kept, kept] = torch.inf
        size[kept] += size[gone]
        group[group == gone] = kept
    return torch.unique(group, return_inverse=True)[1]


def merged_k_means(
    rows: Float[Tensor, "F X"],
    sizes: Sizes,
    num_first: int,
    search: Search,
    *,
    solve: Solver = balanced_k_means,
) -> Clusters:
    """Balanced k-means into `num_first` clusters, merged by UPGMA, then balanced again.

    Merged clusters have the sizes that come; the cheapest assignment to their means, with the
    sizes that are allowed, ends it.

    Args:
        solve: how the first clusters are found.

    Raises:
        ConfigError: fewer clusters to begin with than are wanted.

    Source: PADD, arXiv:2606.10369, section 2.1 (over-clustering).
    """
    if not sizes.num_clusters <= num_first <= rows.shape[0]:
        message = (
            f"split.merge_from is {num_first}; it must be from {sizes.num_clusters}, the groups "
            f"that are wanted, to {rows.shape[0]}, the neurons. Change it or leave it out."
        )
        raise ConfigError(message)
    num_clusters = sizes.num_clusters
    first = solve(rows, Sizes.equal(rows.shape[0], num_first), search)
    merged = clusters_of(rows, upgma(first.centroid, num_clusters)[first.label], num_clusters)
    wanted = sizes.near(merged.sizes)
    label, _ = balanced_assignment(squared_distances(rows.float(), merged.centroid), wanted)
    return clusters_of(rows, label, num_clusters)
