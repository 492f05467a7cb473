"""Recipes that learn from rewards, and what students write to held-out prompts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FAST
from tests.tiny_models import byte_tokenizer
from tutelage.core.errors import ConfigError
from tutelage.core.records import Prompt, Rollout
from tutelage.evaluation import written_numbers
from tutelage.recipes.assemble import assemble, make_student
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, alone, baseline, load
from tutelage.recipes.measure import Measurer
from tutelage.recipes.narrator import Silence
from tutelage.recipes.rows import make_judge, prepare_rows
from tutelage.recipes.run import run_recipe
from tutelage.rollouts import StudentRolloutSettings

REWARD = "reward={kind: exact_answer, extract: {kind: whole}}"
POLICY = (
    "teacher={kind: toy, num_layers: 4, width: 32}",
    "objective=policy_gradient",
    "baselines={}",
)


def recipe_of(data: str, folder: Path, *overrides: str, group: int = 4) -> Recipe:
    writing = f"kind: student, max_completion_tokens: 6, completions_per_prompt: {group}"
    return load(
        "tiny",
        [
            *FAST,
            *POLICY,
            f"rollouts={{{writing}, data: {data}}}",
            "evaluation={num_rows: 4, num_samples: 1, num_token_rows: 1, written_rows: 4}",
            REWARD,
            f"output={folder / 'run'}",
            *overrides,
        ],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_rewarded_run_logs_rewards_and_shows_them(data: str, tmp_path: Path) -> None:
    outcome = run_recipe(recipe_of(data, tmp_path, "report.enabled=true"))
    logged = lines(outcome.folder / "metrics.jsonl")
    train = [line for line in logged if line["phase"] == "train"]
    measured = [line for line in logged if line["phase"] == "eval"]
    assert all(0 <= line["reward"] <= 1 for line in train)
    assert all({"reward", "telling_share", "generated_tokens"} <= line.keys() for line in train)
    assert all({"reward", "reward_standard_error"} <= line.keys() for line in measured)
    assert all(line["written_forward_kl"] > 0 for line in measured)
    assert all(0 <= line["written_overlap"] <= 1 for line in measured)
    rows = {row["name"]: row for row in outcome.summary["rows"]}
    assert {"reward", "written_tokens"} <= rows["before"].keys()
    assert rows["distilled"]["generated_tokens"] == sum(line["generated_tokens"] for line in train)
    assert outcome.report is not None
    assert "The reward of its answers to held-out prompts" in outcome.report.read_text("utf-8")


def test_what_a_clip_does_is_measured_on_the_students_own_text(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(
        data, tmp_path, "objective={kind: forward_kl, clip: {kind: pointwise, threshold: 0.02}}"
    )
    work = assemble(recipe, None, Silence())
    student = make_student(recipe, work)
    numbers = Measurer(recipe, work, student).written()
    assert 0 < numbers["clipped_entries_share"] < 1
    assert 0 < numbers["clipped_teacher_mass"] <= 1
    assert 0 <= numbers["reversed_top_share"] <= 1


def test_a_judge_compares_the_completions_of_one_prompt(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path, group=2)
    tokenizer = byte_tokenizer()
    judge = make_judge(recipe, tokenizer)
    assert judge is not None
    rows = prepare_rows(recipe, tokenizer).training
    # Each right answer beside a wrong one, and two that are equally right.
    wrong = [type(row)(prompt=row.prompt, completion_ids=(65, 66)) for row in rows]
    judged = judge([rows[0], wrong[0], wrong[1], rows[1], rows[2], rows[2]])
    assert [row.reward for row in judged] == [1, 0, 0, 1, 1, 1]
    advantages = [row.advantage for row in judged]
    assert advantages[:4] == pytest.approx([1, -1, -1, 1], rel=1e-5)
    assert advantages[4:] == [0, 0]


def test_a_baseline_of_another_kind_reads_the_same_rows(data: str, tmp_path: Path) -> None:
    supervised = "{rollouts: {kind: dataset}, objective: cross_entropy}"
    recipe = recipe_of(data, tmp_path, f"baselines={{sft: {supervised}}}")
    assert list(contradictions(recipe)) == []
    other = baseline(recipe, "sft").rollouts
    assert other.kind == "dataset"
    assert other.data == recipe.rollouts.data
    assert isinstance(recipe.rollouts, StudentRolloutSettings)
    outcome = run_recipe(recipe)
    names = [row["name"] for row in outcome.summary["rows"]]
    assert names == ["before", "sft", "distilled", "teacher"]
    assert all("reward" in row for row in outcome.summary["rows"][:3])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward=null"], "reward is missing, and policy_gradient learns from nothing else"),
        (
            ["rollouts.completions_per_prompt=1"],
            "rollouts.completions_per_prompt is 1, and policy_gradient compares",
        ),
        (
            ["rollouts.completions_per_prompt=3"],
            "it must be a multiple of rollouts.completions_per_prompt, 3",
        ),
        (
            ["objective=forward_kl", "training.weighting={return_discount: 0.5}"],
            "only sampled_token has returns",
        ),
        (
            ["training.weighting={importance: {}}", "rollouts.top_p=0.9"],
            "training.weighting.importance is given, and tokens are drawn greedily or with top_p",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    data: str, tmp_path: Path, overrides: list[str], said: str
) -> None:
    found = list(contradictions(recipe_of(data, tmp_path, *overrides)))
    assert any(said in line for line in found), found


@pytest.mark.parametrize(
    ("rollouts", "said"),
    [
        ("{kind: dataset, data: DATA}", "policy_gradient, which learns from fresh completions"),
        (
            "{kind: mixed, completions_per_prompt: 4, data: DATA}",
            "rollouts.completions_per_prompt is 4 with rollouts.kind mixed",
        ),
    ],
)
def test_rows_of_others_are_refused_where_rewards_teach(
    data: str, tmp_path: Path, rollouts: str, said: str
) -> None:
    recipe = recipe_of(data, tmp_path, f"rollouts={rollouts.replace('DATA', data)}")
    found = list(contradictions(recipe))
    assert any(said in line for line in found), found


def test_a_reward_that_nobody_asks_for_is_refused(data: str, tmp_path: Path) -> None:
    with_data = f"rollouts={{kind: dataset, data: {data}}}"
    overrides = ("objective=forward_kl", with_data, "evaluation.written_rows=0")
    found = list(contradictions(recipe_of(data, tmp_path, *overrides)))
    assert any("nothing is written that it could judge" in line for line in found), found


def test_a_misspelt_reward_is_told_its_name(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exact_answer"):
        recipe_of(data, tmp_path, "reward={kind: exact_anwser}")


def test_a_recipe_and_its_baselines_can_be_compared_as_equals(data: str, tmp_path: Path) -> None:
    supervised = "{rollouts: {kind: dataset}, objective: cross_entropy}"
    recipe = recipe_of(data, tmp_path, f"baselines={{sft: {supervised}}}")
    bare, sft = alone(recipe)
    assert (bare.name, sft.name) == (recipe.name, "sft")
    assert bare.objective.kind == "policy_gradient"
    assert sft.objective.kind == "cross_entropy"
    assert not bare.baselines
    assert not sft.baselines


def test_the_small_presets_follow_each_other(tmp_path: Path) -> None:
    few = ("report.enabled=false", "evaluation.num_samples=0", "evaluation.num_token_rows=0")
    base = [f"output={tmp_path / 'base'}", "training.num_steps=2", "training.warmup_steps=0"]
    made = run_recipe(load("reasoning_base", [*base, "evaluation.num_rows=4", *few]))
    shorter = [
        f"output={tmp_path / 'opsd'}",
        f"student.model={made.student}",
        "training={num_steps: 2, rows_per_step: 8, warmup_steps: 0}",
        "evaluation.num_rows=6",
        "evaluation.written_rows=4",
        *few,
    ]
    outcome = run_recipe(load("opsd_small", shorter))
    names = [row["name"] for row in outcome.summary["rows"]]
    assert names == [
        *("before", "sft", "grpo", "no_clip", "pointwise", "budget"),
        *("other_problem", "no_solution", "distilled"),
    ]
    assert all("reward" in row for row in outcome.summary["rows"])
    # A baseline with another teacher is measured against that one, from its start on.
    other = lines(tmp_path / "opsd" / "baselines" / "other_problem" / "metrics.jsonl")[0]
    own = lines(tmp_path / "opsd" / "metrics.jsonl")[0]
    assert other["step"] == own["step"] == 0
    assert other["written_forward_kl"] != own["written_forward_kl"]
    # Without a solution both views are the same, and a frozen teacher has nothing to say.
    same = next(row for row in outcome.summary["rows"] if row["name"] == "no_solution")
    assert same["written_forward_kl"] == pytest.approx(0, abs=1e-6)


def test_the_standard_error_of_a_reward_is_that_of_its_mean() -> None:
    row = Rollout(prompt=Prompt(student_ids=(1,)), completion_ids=(2, 3))
    numbers = written_numbers([replace(row, reward=reward) for reward in (1.0, 0.0, 0.0, 0.0)])
    assert numbers["reward"] == 0.25
    assert numbers["reward_standard_error"] == pytest.approx(0.25)
