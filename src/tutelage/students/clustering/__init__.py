"""Groups of rows with sizes that are asked for, and how good they are: mathematics, no models."""

from tutelage.students.clustering.assignment import balanced_assignment
from tutelage.students.clustering.constrained import constrained_k_means
from tutelage.students.clustering.k_means import (
    Clusters,
    Search,
    Sizes,
    Solver,
    balanced_k_means,
    clusters_of,
    squared_distances,
)
from tutelage.students.clustering.merging import merged_k_means, upgma
from tutelage.students.clustering.quality import Quality, quality_of

__all__ = [
    "Clusters",
    "Quality",
    "Search",
    "Sizes",
    "Solver",
    "balanced_assignment",
    "balanced_k_means",
    "clusters_of",
    "constrained_k_means",
    "merged_k_means",
    "quality_of",
    "squared_distances",
    "upgma",
]
