import pytest
import torch
from benchmarks.rollouts_work import Limits, make_work

from benchmarks import rollouts

ASKED = {"prompts": 12, "group": 3, "longest": 160}


def answer(per_cpu_second: float) -> dict:
    return {
        "tokens": 100,
        "per_cpu_second": per_cpu_second,
        "per_wall_second": per_cpu_second / 2,
        "cpu_per_wall": 1.0,
        "memory_bytes": 2**20,
        "probe_seconds": 0.1,
    }


def test_everyone_gets_the_same_ragged_rows() -> None:
    work, again = make_work(ASKED, entries=1000), make_work(ASKED, entries=1000)
    assert work == again
    assert len(work.prompts) == len(work.limits) == 12
    assert len({tuple(prompt) for prompt in work.prompts}) == 4
    assert work.prompts[0] == work.prompts[2] != work.prompts[3]
    assert len({len(prompt) for prompt in work.prompts}) > 2
    assert 1 <= min(work.limits) < max(work.limits) == work.most <= 160
    assert work.num_tokens == sum(work.limits)


def test_a_batch_goes_on_until_its_last_row_is_done() -> None:
    stops = Limits([5, 7])
    done = [stops(torch.zeros(2, n), None).tolist() for n in (4, 5, 6, 7)]
    assert done == [[False, False], [True, False], [True, False], [True, True]]


def test_the_ratio_is_to_generate_in_the_same_dtype(tmp_path) -> None:
    plan = rollouts.plan_from(["--folder", str(tmp_path), "--rounds", "1"])
    answers = {
        "slots, fp32": [answer(30.0)],
        "generate, fp32": [answer(10.0)],
        "slots, bf16": [answer(80.0)],
        "generate, bf16": [answer(20.0)],
    }
    table, marks, notes = rollouts.body_of(plan, answers, threads=1)
    ratios = [line.split("|")[3].strip() for line in table.splitlines()[2:]]
    assert ratios == ["3", "1", "4", "1"]
    assert marks == ""
    assert "32 prompts" in notes


def test_rows_come_in_whole_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rollouts.plan_from(["--prompts", "32", "--group", "5"])
    assert "multiple of --group" in capsys.readouterr().err


def test_what_has_no_cache_is_asked_for_less() -> None:
    plan = rollouts.plan_from(["--only", "fp32", "--group", "16"])
    by_name = {job.name: job.request for job in rollouts.jobs_of(plan, threads=1)}
    assert by_name["generate, fp32, no cache"]["prompts"] == plan.few
    assert by_name["generate, fp32, no cache"]["group"] == plan.few
    assert by_name["slots, fp32"]["prompts"] == by_name["generate, fp32"]["prompts"] == 32
