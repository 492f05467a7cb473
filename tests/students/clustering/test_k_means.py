"""Clusters with sizes: what they promise, and what others make of the same points."""

import pytest
import torch
from k_means_constrained import KMeansConstrained
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import silhouette_score
from torch import Tensor

from tutelage.core.errors import ConfigError, MissingDependencyError
from tutelage.students.clustering import (
    Search,
    Sizes,
    balanced_k_means,
    clusters_of,
    constrained_k_means,
    merged_k_means,
    quality_of,
    squared_distances,
    upgma,
)


def planted(num_clusters: int = 6, each: int = 20, width: int = 8) -> tuple[Tensor, Tensor]:
    """Points around far-away centres, shuffled, and which centre each is around."""
    generator = torch.Generator().manual_seed(3)
    centre = 8 * torch.randn(num_clusters, width, generator=generator)
    truth = torch.arange(num_clusters).repeat_interleave(each)
    truth = truth[torch.randperm(len(truth), generator=generator)]
    return centre[truth] + torch.randn(len(truth), width, generator=generator), truth


def noise(num_rows: int = 60, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def same_partition(one: Tensor, other: Tensor) -> bool:
    return bool(((one[:, None] == one) == (other[:, None] == other)).all())


def inertia(rows: Tensor, label: Tensor) -> float:
    """By the definition, one cluster at a time."""
    groups = [rows[label == at].double() for at in label.unique()]
    return sum(float((group - group.mean(dim=0)).square().sum()) for group in groups)


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found_whatever_the_seed(seed: int) -> None:
    rows, truth = planted()
    found = balanced_k_means(rows, Sizes.equal(120, 6), Search(seed=seed))
    assert same_partition(found.label, truth)
    assert found.sizes == [20] * 6
    assert found.inertia == pytest.approx(inertia(rows, truth), rel=1e-5)


def test_on_planted_clusters_the_inertia_is_that_of_k_means_constrained() -> None:
    rows, _ = planted()
    theirs = KMeansConstrained(6, size_min=20, size_max=20, random_state=0, n_jobs=1)
    expected = float(theirs.fit(rows.double().numpy()).inertia_)
    assert balanced_k_means(rows, Sizes.equal(120, 6), Search()).inertia == pytest.approx(
        expected, rel=1e-5
    )
    by_door = constrained_k_means(rows, Sizes.equal(120, 6), Search())
    assert by_door.inertia == pytest.approx(expected, rel=1e-5)
    assert by_door.sizes == [20] * 6


@pytest.mark.parametrize("seed", range(8))
def test_on_noise_no_round_makes_it_worse_and_sizes_are_exact(seed: int) -> None:
    rows = noise(seed=seed)
    found = balanced_k_means(rows, Sizes.equal(60, 5), Search(seed=seed))
    assert found.sizes == [12] * 5
    assert len(found.course) > 1
    assert all(b < a for a, b in zip(found.course, found.course[1:], strict=False))
    assert found.inertia == pytest.approx(inertia(rows, found.label), rel=1e-5)
    members = torch.cat(found.members)
    assert sorted(members.tolist()) == list(range(60))


def test_no_random_balanced_partition_is_better() -> None:
    rows = noise()
    found = balanced_k_means(rows, Sizes.equal(60, 5), Search())
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        label = torch.arange(5).repeat_interleave(12)[torch.randperm(60, generator=generator)]
        assert found.inertia < inertia(rows, label)


def test_the_end_is_a_fixed_point_no_pair_that_swaps_places_gains() -> None:
    rows = noise(24)
    found = balanced_k_means(rows, Sizes.equal(24, 3), Search())
    cost = squared_distances(rows, found.centroid)
    at = torch.arange(24)
    own = cost[at, found.label]
    swapped = cost[:, found.label] + cost[:, found.label].T
    assert (swapped >= own[:, None] + own - 1e-4).all()


def test_more_starts_never_end_worse_and_the_same_seed_gives_the_same_clusters() -> None:
    rows = noise(90, seed=4)
    sizes = Sizes.equal(90, 9)
    one = balanced_k_means(rows, sizes, Search(seed=2))
    again = balanced_k_means(rows, sizes, Search(seed=2))
    many = balanced_k_means(rows, sizes, Search(seed=2, num_starts=6))
    other = balanced_k_means(rows, sizes, Search(seed=3))
    assert torch.equal(one.label, again.label)
    assert not torch.equal(one.label, other.label)
    assert many.inertia <= one.inertia


def test_sizes_that_do_not_divide_differ_by_one() -> None:
    found = balanced_k_means(noise(50), Sizes.equal(50, 7), Search())
    assert sorted(found.sizes) == [7] * 6 + [8]


def test_a_tolerance_bounds_the_sizes_and_lowers_the_inertia() -> None:
    rows, truth = planted(3, each=20)
    rows = torch.cat([rows, rows[truth == 0][:10] + 0.1])
    loose = balanced_k_means(
        rows, Sizes(num_clusters=3, smallest=18, largest=30), Search(num_starts=4)
    )
    tight = balanced_k_means(rows, Sizes.equal(70, 3), Search(num_starts=4))
    assert sorted(loose.sizes) == [20, 20, 30]
    assert all(23 <= size <= 24 for size in tight.sizes)
    assert loose.inertia < tight.inertia


def test_wished_sizes_are_cut_to_the_bounds_and_still_add_up() -> None:
    sizes = Sizes(num_clusters=4, smallest=8, largest=12)
    assert sizes.near([40, 0, 0, 0]) == [12, 10, 9, 9]
    assert sizes.near([10, 10, 10, 10]) == [10] * 4
    assert sizes.near([20, 20, 0, 0]) == [12, 12, 8, 8]


def test_rows_that_cannot_be_divided_so_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"10 neurons .* 3 groups of 4 to 4; there must be"):
        balanced_k_means(noise(10), Sizes(num_clusters=3, smallest=4, largest=4), Search())


def test_rows_that_are_all_alike_are_divided_all_the_same() -> None:
    found = balanced_k_means(torch.ones(12, 3), Sizes.equal(12, 3), Search())
    assert found.sizes == [4] * 3
    assert found.inertia == 0


@pytest.mark.parametrize("seed", range(4))
def test_upgma_is_average_linkage(seed: int) -> None:
    points = noise(14, 3, seed)
    tree = linkage(points.double().numpy(), method="average")
    for num_groups in (1, 3, 8, 14):
        expected = torch.from_numpy(fcluster(tree, num_groups, criterion="maxclust"))
        found = upgma(points, num_groups)
        assert same_partition(found, expected)
        assert found.unique().tolist() == list(range(num_groups))


def test_merged_clusters_hold_every_neuron_once_and_are_balanced_again() -> None:
    rows, truth = planted()
    found = merged_k_means(rows, Sizes.equal(120, 6), 12, Search())
    assert same_partition(found.label, truth)
    on_noise = merged_k_means(noise(), Sizes.equal(60, 5), 15, Search())
    assert on_noise.sizes == [12] * 5
    assert sorted(torch.cat(on_noise.members).tolist()) == list(range(60))
    with pytest.raises(ConfigError, match=r"split\.merge_from is 4; it must be from 6"):
        merged_k_means(rows, Sizes.equal(120, 6), 4, Search())


def test_silhouette_is_that_of_scikit_learn() -> None:
    rows = noise(40)
    label = torch.tensor([0] * 20 + [1] * 12 + [2] * 7 + [3])
    quality = quality_of(rows, clusters_of(rows, label, 4))
    expected = silhouette_score(rows.double().numpy(), label.numpy())
    assert quality.silhouette == pytest.approx(float(expected), abs=1e-5)
    some = quality_of(rows, clusters_of(rows, label, 4), num_probes=20)
    assert -1 < some.silhouette < 1


def test_sizes_and_variance_are_by_their_definitions() -> None:
    rows = noise(40)
    label = torch.tensor([0] * 20 + [1] * 12 + [2] * 7 + [3])
    quality = quality_of(rows, clusters_of(rows, label, 4))
    sizes = [20, 12, 7, 1]
    spread = (sum((size - 10) ** 2 for size in sizes) / 4) ** 0.5
    assert quality.size_variation == pytest.approx(spread / 10)
    total = float((rows - rows.mean(dim=0)).double().square().sum())
    assert quality.between_share == pytest.approx(1 - inertia(rows, label) / total, rel=1e-4)
    said = list(quality.complaints(least_silhouette=0.0, most_variation=0.1))
    assert said[-1] == f"variation of sizes {spread / 10:.3f} > 0.1"


def test_planted_clusters_are_good_and_dealt_ones_are_not() -> None:
    rows, truth = planted()
    good = quality_of(rows, clusters_of(rows, truth, 6))
    poor = quality_of(rows, clusters_of(rows, truth.sort().values, 6))
    assert good.silhouette > 0.5
    assert poor.silhouette < 0
    assert good.between_share > 0.9
    assert poor.between_share < 0.1
    assert not list(good.complaints(least_silhouette=0.0, most_variation=0.1))
    assert list(poor.complaints(least_silhouette=0.0, most_variation=0.1))


def test_without_the_package_the_other_solver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "k_means_constrained", None)
    with pytest.raises(MissingDependencyError, match=r"must be lloyd then.*tutelage\[moe\]"):
        constrained_k_means(noise(), Sizes.equal(60, 5), Search())
