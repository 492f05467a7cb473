# pyright: basic
# The door to `k_means_constrained`, whose types are partial.
"""The package that MoEfication and LLaMA-MoE cluster with, for clusters as they would have them."""

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.errors import MissingDependencyError
from tutelage.core.seeds import seed_for
from tutelage.students.clustering.k_means import Clusters, Search, Sizes, clusters_of


def constrained_k_means(rows: Float[Tensor, "F X"], sizes: Sizes, search: Search) -> Clusters:
    """`KMeansConstrained` by minimum-cost flow; fine to some thousands of rows.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        from k_means_constrained import KMeansConstrained  # noqa: PLC0415 - optional
    except ImportError as error:
        message = (
            "split.solver is k_means_constrained, which is not installed; it must be lloyd then. "
            "Change it, or run: pip install 'tutelage[moe]'"
        )
        raise MissingDependencyError(message) from error
    found = KMeansConstrained(
        n_clusters=sizes.num_clusters,
        size_min=sizes.smallest,
        size_max=sizes.largest,
        n_init=search.num_starts,
        max_iter=search.max_iterations,
        random_state=seed_for(search.seed, "k_means_constrained") % 2**32,
        n_jobs=1,
    ).fit(rows.detach().double().cpu().numpy())
    label = torch.as_tensor(found.labels_, dtype=torch.long)
    return clusters_of(rows, label, sizes.num_clusters)
