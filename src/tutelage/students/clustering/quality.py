"""Whether clusters are clusters: how apart, how equal, how much they explain."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.students.clustering.k_means import Clusters

_SLAB_NUMBERS = 2**22


@final
@dataclass(frozen=True, kw_only=True)
class Quality:
    """Three numbers about the clusters of one layer."""

    silhouette: float
    """Mean over rows of (b - a) / max(a, b): a the mean distance to the others of one's own
    cluster, b that to the nearest other cluster. From -1 to 1; below 0, many would rather be
    elsewhere."""
    size_variation: float
    """Standard deviation of the sizes over their mean (CV); 0 where all are equal."""
    between_share: float
    """Part of the rows' variance that lies between the centroids, weighted by size: 0 to 1."""

    def complaints(self, *, least_silhouette: float, most_variation: float) -> Iterator[str]:
        """A few words for each number that is out of bounds."""
        if self.silhouette < least_silhouette:
            yield f"silhouette {self.silhouette:.3f} < {least_silhouette:g}"
        if self.size_variation > most_variation:
            yield f"variation of sizes {self.size_variation:.3f} > {most_variation:g}"


def quality_of(
    rows: Float[Tensor, "F X"], clusters: Clusters, *, num_probes: int | None = None
) -> Quality:
    """The three numbers; time for all rows is quadratic in their number.

    Args:
        num_probes: average the silhouette over this many rows, evenly spaced, their distances to
            all others measured; None: all rows.

    Source: Rousseeuw 1987 (silhouette); PADD, arXiv:2606.10369, appendix I.
    """
    rows = rows.float()
    sizes = torch.tensor(clusters.sizes, dtype=torch.float64)
    mean = rows.double().mean(dim=0)
    whole = float((rows.double() - mean).square().sum())
    between = float((sizes * (clusters.centroid.double() - mean).square().sum(dim=1)).sum())
    return Quality(
        silhouette=_silhouette(rows, clusters.label, sizes, num_probes),
        size_variation=float(sizes.std(correction=0) / sizes.mean()),
        between_share=between / whole if whole > 0 else 0.0,
    )


def _silhouette(
    rows: Float[Tensor, "F X"],
    label: Int[Tensor, " F"],
    sizes: Float[Tensor, " E"],
    num_probes: int | None,
) -> float:
    num_rows = rows.shape[0]
    if len(sizes) < 2:  # noqa: PLR2004 - with one cluster there is no other
        return 0.0
    num = num_rows if num_probes is None else min(num_probes, num_rows)
    probes = torch.arange(num) * num_rows // num
    member_FE = torch.nn.functional.one_hot(label, len(sizes)).to(rows.dtype)
    slab = max(1, _SLAB_NUMBERS // num_rows)
    total = 0.0
    for chosen in probes.split(slab):
        sums_PE = (torch.cdist(rows[chosen], rows) @ member_FE).double()
        own = label[chosen]
        at = torch.arange(len(chosen))
        alone = sizes[own] <= 1
        within = sums_PE[at, own] / (sizes[own] - 1).clamp(min=1)
        others_PE = sums_PE / sizes.clamp(min=1)
        others_PE[:, sizes == 0] = torch.inf
        others_PE[at, own] = torch.inf
        other = others_PE.amin(dim=1)
        score = (other - within) / torch.maximum(other, within).clamp(min=1e-30)
        # By convention, a row that is a cluster by itself counts nothing.
        total += float(score.masked_fill(alone, 0.0).sum())
    return total / num
