import torch
from benchmarks.clustering_work import WORK, rows_of, work

from benchmarks import clustering


def test_everyone_clusters_the_same_rows_and_the_balanced_ones_are_balanced() -> None:
    asked = {"neurons": 96, "clusters": 4, "width": 8, "rounds": 20, "rank": 0, "threads": 1}
    answers = {name: work({**asked, "engine": name}) for name in WORK}
    assert (
        answers["ours"]["size_variation"] == answers["k-means-constrained"]["size_variation"] == 0
    )
    assert answers["scikit-learn, sizes free"]["size_variation"] > 0
    assert all(0.2 < answer["inertia_share"] < 1 for answer in answers.values())
    table = clustering.table_of({name: [answer] for name, answer in answers.items()})
    assert table.count("\n") == 4


def test_the_flow_is_not_asked_where_nobody_would_wait_for_it() -> None:
    plan = clustering.plan_from(["--size", "1536x8x64", "--size", "18944x128x3584"])
    names = [[job.name for job in clustering.jobs_of(plan, size, threads=1)] for size in plan.sizes]
    assert "k-means-constrained" in names[0]
    assert "k-means-constrained" not in names[1]
    assert clustering.plan_from(["--quick"]).sizes[0].neurons == 384


def test_rows_of_a_rank_lie_mostly_in_that_many_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    asked = {"neurons": 200, "width": 64, "rank": 4}
    spectrum = torch.linalg.svdvals(rows_of(asked, generator)).square()
    assert float(spectrum[:4].sum() / spectrum.sum()) > 0.7
    free = torch.linalg.svdvals(rows_of({**asked, "rank": 0}, generator)).square()
    assert float(free[:4].sum() / free.sum()) < 0.3
