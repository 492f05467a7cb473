import json
import math
from pathlib import Path

import pytest
from benchmarks.evidence_plan import Budget, PlannedRun

from benchmarks import evidence, evidence_runs
from benchmarks import evidence_plan as plan

RUN = PlannedRun(variant="forward_kl", learning_rate=1e-4, seed=2)


def result(seed: int, forward_kl: float) -> dict:
    final = {"forward_kl": forward_kl, "reverse_kl": 1.0, "perplexity": 5.0, "top1_agreement": 0.5}
    return {
        "seed": seed,
        "learning_rate": 1e-4,
        "final": final,
        "seconds": 60.0,
        "trained_tokens": 30_000,
    }


def test_a_finished_run_is_found_and_one_with_another_budget_is_not(tmp_path: Path) -> None:
    budget = Budget(num_steps=10)
    assert plan.finished(tmp_path, RUN, budget) is None
    plan.keep(tmp_path, RUN, budget, {"seconds": 3.0})
    found = plan.finished(tmp_path, RUN, budget)
    assert found is not None
    assert (found["variant"], found["seed"], found["seconds"]) == ("forward_kl", 2, 3.0)
    assert plan.finished(tmp_path, RUN, Budget(num_steps=11)) is None


def test_more_seeds_or_rates_keep_what_is_finished(tmp_path: Path) -> None:
    plan.keep(tmp_path, RUN, Budget(seeds=(1, 2)), {"seconds": 3.0})
    wider = Budget(seeds=(1, 2, 3, 4), learning_rates=(1e-4, 1e-3))
    assert plan.finished(tmp_path, RUN, wider) is not None


def test_a_result_cut_short_by_a_kill_counts_as_never_written(tmp_path: Path) -> None:
    plan.keep(tmp_path, RUN, Budget(), {"seconds": 3.0})
    path = tmp_path / RUN.name / plan.RESULT_NAME
    path.write_text(path.read_text()[:20])
    assert plan.finished(tmp_path, RUN, Budget()) is None


def test_no_two_planned_runs_share_a_folder() -> None:
    budget = Budget()
    runs = plan.tuning_runs(list(plan.VARIANTS), budget)
    runs += plan.final_runs(dict.fromkeys(plan.VARIANTS, 1e-4), budget)
    assert len({run.name for run in runs}) == len(runs)


def test_the_best_rate_is_the_lowest_divergence_and_a_broken_run_never_wins() -> None:
    scores = {1e-4: 0.9, 2e-4: 0.7, 4e-4: math.nan}
    assert plan.best_rate(scores, metric="forward_kl") == 2e-4
    assert plan.best_rate(scores, metric="top1_agreement") == 1e-4
    with pytest.raises(ValueError, match="finite forward_kl"):
        plan.best_rate({1e-4: math.nan}, metric="forward_kl")


def test_a_best_rate_at_the_end_of_the_grid_is_named() -> None:
    budget = Budget(learning_rates=(1e-4, 2e-4, 4e-4))
    assert plan.at_the_edge({"a": 2e-4, "b": 4e-4}, budget) == ["b"]


def test_the_table_has_intervals_and_the_student_before() -> None:
    results = {"forward_kl": [result(seed, 0.8 + seed / 100) for seed in (1, 2, 3)]}
    before = dict.fromkeys(plan.METRICS, 2.0)
    lines = plan.results_table(results, before).splitlines()
    assert lines[2].startswith("| before |")
    assert "0.82 ± 0.025" in lines[3]


def test_verdicts_tell_apart_what_separates_what_does_not_and_what_is_the_same() -> None:
    results = {
        "low": [result(seed, 0.5 + seed / 1000) for seed in (1, 2, 3)],
        "high": [result(seed, 0.9 + seed / 900) for seed in (1, 2, 3)],
        "twin": [result(seed, 0.5 + seed / 1000) for seed in (1, 2, 3)],
    }
    low_high, low_twin, _ = plan.verdict_lines(results, "forward_kl")
    assert low_high.endswith(", separate")
    assert low_twin.endswith(", same")


@pytest.fixture(scope="module")
def tiny_evidence(tmp_path_factory: pytest.TempPathFactory) -> evidence.Evidence:
    words = "--recipe tiny --steps 3 --keep-layers 2 --tuning-rows 8 --precision fp32"
    words += " --rates 1e-3 1e-2 --seeds 1 2 --coincidence-steps 3"
    folder = tmp_path_factory.mktemp("evidence")
    asked = evidence.evidence_from([*words.split(), "--folder", str(folder)])
    evidence.run(asked)
    return asked


@pytest.mark.slow
def test_csd_student_student_is_reverse_kl_and_forward_kl_is_not(
    tiny_evidence: evidence.Evidence,
) -> None:
    same = json.loads(tiny_evidence.coincidence_path.read_text())
    gap = same["concrete_score_ss_against_reverse_kl"]["relative_weight_difference"]
    real = same["forward_kl_against_reverse_kl"]["relative_weight_difference"]
    assert gap < 1e-12
    assert real > 1e-4
    losses = same["losses"]
    assert losses["concrete_score_ss"] != pytest.approx(losses["forward_kl"])


@pytest.mark.slow
def test_every_variant_had_the_same_tokens_and_the_page_is_there(
    tiny_evidence: evidence.Evidence,
) -> None:
    results = [
        plan.finished(evidence.work_folder(tiny_evidence.folder), run, tiny_evidence.budget)
        for run in plan.tuning_runs(list(plan.VARIANTS), tiny_evidence.budget)
    ]
    assert len({result["trained_tokens"] for result in results if result}) == 1
    assert (tiny_evidence.folder / "compare.json").is_file()
    assert "concrete_score_ts" in (tiny_evidence.folder / "evidence.md").read_text()


@pytest.mark.slow
def test_after_a_kill_only_what_is_missing_is_run_again(
    tiny_evidence: evidence.Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tiny_evidence.folder / "evidence.md").read_text()
    lost = next((tiny_evidence.folder / "runs").glob("taid_linear/*/seed-2/result.json"))
    lost.write_text(lost.read_text()[:30])
    done: list[str] = []
    train = evidence_runs.Workbench.run

    def counted(self, run, *, judge):
        done.append(run.name)
        return train(self, run, judge=judge)

    monkeypatch.setattr(evidence_runs.Workbench, "run", counted)
    after = evidence.run(tiny_evidence)
    assert done == [str(lost.parent.relative_to(tiny_evidence.folder / "runs"))]
    # The run that was lost ends where it ended before; only its seconds are new.
    assert numbers_of(after) == numbers_of(before)


def numbers_of(text: str) -> list[str]:
    rows = [line.split("|")[:-2] for line in text.splitlines() if line.startswith("| ")]
    return ["|".join(row) for row in rows]
