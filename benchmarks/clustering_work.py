"""One clustering in its own process: seconds, rounds, memory, and how good the clusters are."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

# As a script, this file's own folder is on the path, and not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.command import work_by
from benchmarks.measure import Answer, peak_bytes, reset_peak, timed

from tutelage.students.clustering import (
    Search,
    Sizes,
    balanced_k_means,
    clusters_of,
    constrained_k_means,
)

Labels: TypeAlias = torch.Tensor


def ours(rows: torch.Tensor, num_clusters: int, rounds: int) -> tuple[Labels, int]:
    """Balanced k-means of this package; the rounds it took."""
    search = Search(seed=0, max_iterations=rounds)
    found = balanced_k_means(rows, Sizes.equal(len(rows), num_clusters), search)
    return found.label, len(found.course)


def constrained(rows: torch.Tensor, num_clusters: int, rounds: int) -> tuple[Labels, int]:
    """The package k-means-constrained, every cluster of the same size."""
    search = Search(seed=0, max_iterations=rounds)
    found = constrained_k_means(rows, Sizes.equal(len(rows), num_clusters), search)
    return found.label, 0


def unconstrained(rows: torch.Tensor, num_clusters: int, rounds: int) -> tuple[Labels, int]:
    """scikit-learn's k-means, whose clusters have the sizes that come."""
    from sklearn.cluster import KMeans  # noqa: PLC0415 - for this worker alone

    found = KMeans(num_clusters, n_init=1, max_iter=rounds, random_state=0).fit(rows.numpy())
    return torch.as_tensor(found.labels_, dtype=torch.long), int(found.n_iter_)


WORK: dict[str, Callable[[torch.Tensor, int, int], tuple[Labels, int]]] = {
    "ours": ours,
    "k-means-constrained": constrained,
    "scikit-learn, sizes free": unconstrained,
}


def rows_of(asked: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
    """Random normal rows; with a rank, mostly within so many random directions."""
    num_rows, width, rank = asked["neurons"], asked["width"], asked["rank"]
    noise = torch.randn(num_rows, width, generator=generator)
    if not rank:
        return noise
    inside = torch.randn(num_rows, rank, generator=generator)
    directions = torch.randn(rank, width, generator=generator) / rank**0.5
    return inside @ directions + 0.5 * noise


def work(asked: dict[str, Any]) -> Answer:
    """Cluster random rows, the same for everybody, once."""
    torch.set_num_threads(int(asked["threads"]))
    generator = torch.Generator().manual_seed(0)
    rows = rows_of(asked, generator)
    cluster = WORK[asked["engine"]]
    # Imports and thread pools are paid before the clock runs.
    cluster(rows[:64, :8].clone(), 4, 2)
    floor = reset_peak()
    with timed() as timing:
        label, rounds = cluster(rows, asked["clusters"], asked["rounds"])
    sizes = torch.bincount(label, minlength=asked["clusters"]).double()
    answer = {
        "wall_seconds": timing.wall_seconds,
        "cpu_seconds": timing.cpu_seconds,
        "memory_bytes": peak_bytes() - floor,
        "rounds": rounds,
        "size_variation": float(sizes.std(correction=0) / sizes.mean()),
    }
    found = clusters_of(rows, label, asked["clusters"])
    spread = float((rows - rows.mean(dim=0)).double().square().sum())
    return {**answer, "inertia_share": found.inertia / spread}


if __name__ == "__main__":
    work_by(work)
