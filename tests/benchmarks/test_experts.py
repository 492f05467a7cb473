import pytest
from benchmarks.experts_work import ENGINES, work

from benchmarks import experts

SMALL = {"width": 32, "expert_width": 16, "experts": 4, "active": 2, "tokens": 48}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_everyone_computes_the_same_layer(dtype: str) -> None:
    asked = {**SMALL, "dtype": dtype, "repeats": 1, "threads": 1}
    answers = {engine: work({**asked, "engine": engine}) for engine in ENGINES}
    norms = [answer["norm"] for answer in answers.values()]
    assert norms[0] > 0
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-5 if dtype == "fp32" else 2e-2)
    table = experts.table_of({name: [answer] for name, answer in answers.items()})
    assert "| ours " in table
    assert table.count("\n") == 4


def test_what_a_size_says_is_what_is_asked() -> None:
    plan = experts.plan_from(["--size", "576x192x8x4x512", "--dtype", "bf16", "--rounds", "1"])
    (job, *_) = experts.jobs_of(plan, plan.sizes[0], "bf16", threads=1)
    assert job.request["expert_width"] == 192
    assert job.request["active"] == 4
    assert plan.sizes[0].title == "width 576, 8 experts of 192, 4 active, 512 tokens"
    assert len(experts.plan_from(["--quick"]).sizes) == 2


def test_a_refusal_stands_in_the_table() -> None:
    table = experts.table_of({"ours": [{"error": "no double precision"}]})
    assert "ours: no double precision" in table
