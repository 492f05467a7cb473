"""Recipes with a policy: what reaches the trainer, what is refused, what is logged."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest
import yaml
from typing_extensions import override

from tests.cli.conftest import FAST
from tests.tiny_models import byte_tokenizer
from tests.tiny_moe import tiny_moe_model
from tutelage.core.errors import ConfigError, DataError
from tutelage.objectives.policies import DrGrpo, Grpo
from tutelage.recipes.assemble import assemble, make_student, make_trainer
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, from_tree, load, to_tree, to_yaml
from tutelage.recipes.making.request import Source
from tutelage.recipes.making.upcycle import upcycle_model
from tutelage.recipes.narrator import Advance, Narrator, Silence
from tutelage.recipes.rewarded import policy_of
from tutelage.recipes.run import Outcome, run_recipe
from tutelage.students import UpcycledStudent


@final
class Listener(Narrator):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Advance]:
        yield lambda done, note="": None

    @override
    def say(self, text: str) -> None:
        self.said.append(text)


COMBINED = (
    "policy={kind: grpo, distill_weight: 0.3}",
    "move=reward_temperature",
    "training.reduction=sequence_mean",
    "training.updates_per_batch=2",
)


def recipe_of(data: str, folder: Path, *overrides: str) -> Recipe:
    writing = "kind: student, max_completion_tokens: 6, completions_per_prompt: 4"
    return load(
        "tiny",
        [
            *FAST,
            f"rollouts={{{writing}, data: {data}}}",
            "evaluation={num_rows: 4, num_samples: 1, num_token_rows: 1, written_rows: 4}",
            # Any byte below 96 will do: random students say enough of them.
            "reward={kind: format, pattern: '^[ -_]'}",
            "baselines={}",
            f"output={folder / 'run'}",
            *overrides,
        ],
    )


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["phase"] == "train"]


def test_rewards_and_a_teacher_in_one_run_log_both_parts(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path, *COMBINED)
    assert list(contradictions(recipe)) == []
    outcome = run_recipe(recipe)
    lines = logged(outcome.folder)
    assert len(lines) == 4
    for line in lines:
        both = line["policy_loss"] + 0.3 * line["distill_loss"]
        assert line["loss"] == pytest.approx(both, rel=1e-5, abs=1e-9)
        assert {"clip_fraction", "ratio_mean", "ratio_max", "approx_kl"} <= line.keys()
    assert [line["batch_step"] for line in lines] == [1, 2, 1, 2]
    # What was written is logged once for the batch, with its first step.
    assert ["reward" in line for line in lines] == [True, False, True, False]
    assert ["generated_tokens" in line for line in lines] == [True, False, True, False]
    assert [line["ratio_max"] for line in lines[::2]] == [1, 1]
    assert all(line["ratio_max"] != 1 for line in lines[1::2])


def test_a_recipe_with_a_policy_reads_back_to_itself(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path, *COMBINED)
    again = from_tree(yaml.safe_load(to_yaml(recipe)))
    assert to_tree(again, defaults=True) == to_tree(recipe, defaults=True)
    assert list(contradictions(again)) == []


def test_the_trainer_is_given_the_policy_and_its_groups(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path, *COMBINED, "rollouts.temperature=0.7")
    work = assemble(recipe, None, Silence())
    student = make_student(recipe, work)
    made = make_trainer(recipe, work, student, output=tmp_path, evaluate=None, hooks=())
    assert made.policy == Grpo(distill_weight=0.3)
    assert made.groups.size == 4
    assert made.sampled_at == 0.7


def test_dr_grpos_length_is_what_may_be_written(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path, "policy=dr_grpo", "advantages.normalise=none")
    assert list(contradictions(recipe)) == []
    assert policy_of(recipe) == DrGrpo(length=6)
    own = recipe_of(
        data, tmp_path, "policy={kind: dr_grpo, length: 9}", "advantages.normalise=none"
    )
    assert policy_of(own) == DrGrpo(length=9)


def test_a_reward_temperature_needs_no_policy(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path, "move=reward_temperature")
    assert list(contradictions(recipe)) == []
    assert len(logged(run_recipe(recipe).folder)) == 4


def test_batches_without_a_lesson_are_counted_and_noted_once(data: str, tmp_path: Path) -> None:
    narrator = Listener()
    never = "reward={kind: exact_answer, extract: {kind: whole}}"
    recipe = recipe_of(data, tmp_path, "objective=policy_gradient", never, "teacher={kind: toy}")
    outcome = run_recipe(recipe, narrator=narrator)
    assert [line["silent_batches"] for line in logged(outcome.folder)] == [1, 2, 3, 4]
    assert (
        len([line for line in narrator.said if "all completions have the same reward" in line]) == 1
    )
    strict = recipe_of(
        data,
        tmp_path / "strict",
        "objective=policy_gradient",
        never,
        "teacher={kind: toy}",
        "advantages.all_equal=error",
    )
    with pytest.raises(DataError, match="all completions have the same reward"):
        run_recipe(strict)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["policy=grpo"], r"training\.reduction is not given"),
        ([*COMBINED, "reward=null", "move=none"], r"reward is missing, and policy\.kind grpo"),
        (
            [*COMBINED, "rollouts.completions_per_prompt=1"],
            r"rollouts\.completions_per_prompt is 1, and policy\.kind grpo",
        ),
        (
            [*COMBINED, "rollouts.kind=dataset", "rollouts.completions_per_prompt=1"],
            "completions_per_prompt is not a setting",
        ),
        ([*COMBINED, "rollouts.temperature=0"], r"rollouts\.temperature is 0 with a policy"),
        (
            [*COMBINED, "objective=policy_gradient", "move=none"],
            r"policy\.distill_weight is 0\.3 with objective\.kind policy_gradient",
        ),
        (
            [*COMBINED[2:], "policy=grpo", "objective={kind: policy_gradient, temperature: 2}"],
            r"objective\.temperature is 2, and a policy reads",
        ),
        (
            [
                *COMBINED[2:],
                "policy=grpo",
                "objective={kind: weighted_sum}",
                "objective.parts=[{weight: 1, objective: {kind: policy_gradient}}]",
            ],
            r"objective\.kind is weighted_sum with policy\.kind grpo",
        ),
        (
            ["objective=policy_gradient", "training.updates_per_batch=2"],
            r"training\.updates_per_batch is 2 with policy_gradient and no policy",
        ),
        (
            ["objective=policy_gradient", "training.epochs_per_batch=2"],
            r"training\.epochs_per_batch is 2 with policy_gradient and no policy",
        ),
        (["training.cut_batch_by=rows"], r"training\.cut_batch_by is rows and updates_per_batch"),
        (["training.rows_per_step=6"], r"training\.rows_per_step is 6; it must be a multiple"),
        (
            [
                "training.rows_per_step=3",
                "training.updates_per_batch=2",
                "training.cut_batch_by=rows",
            ],
            r"rows_per_step \* updates_per_batch \(2\) is 6; it must be a multiple",
        ),
        (["policy=dr_grpo"], r"advantages\.normalise is std with policy\.kind dr_grpo"),
        (
            [*COMBINED[2:], "policy=gspo", "training.weighting={importance: {}}"],
            r"training\.weighting\.importance\.level is token with policy\.kind gspo",
        ),
        (["policy={kind: pr_grpo, suppression: -1}"], r"policy\.suppression is -1"),
        (["policy={kind: rspo, lowest: 2}"], r"policy\.lowest is 2"),
        (["policy={kind: grpo, lambda: 2}"], r"policy\.lambda"),
        (["policy=ppo"], r"policy\.kind is ppo|policy\.kind"),
        (["training.updates_per_batch=0"], r"training\.updates_per_batch is 0"),
        (
            [
                "training.updates_per_batch=2",
                "training.tokens_per_step=50",
                "training.rows_per_step=8",
            ],
            "tokens_per_step",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_before_a_weight_is_loaded(
    data: str, tmp_path: Path, overrides: list[str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        raise ConfigError("\n".join(contradictions(recipe_of(data, tmp_path, *overrides))))


def test_rows_of_the_data_serve_one_step(tmp_path: Path) -> None:
    recipe = load("tiny", [*FAST, "training.updates_per_batch=2"])
    (line,) = [one for one in contradictions(recipe) if not one.startswith("baselines")]
    assert line.startswith("training.updates_per_batch is 2 with rollouts.kind dataset")


def test_a_dense_student_is_refused_where_routers_are_asked_for(data: str, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path, "policy=pr_grpo", "training.reduction=sequence_mean")
    with pytest.raises(ConfigError, match=r"policy\.kind is pr_grpo.*this student has none"):
        run_recipe(recipe)


def test_the_small_presets_of_padd_follow_each_other(tmp_path: Path) -> None:
    few = (
        "training.num_steps=2",
        "training.warmup_steps=0",
        "training.rows_per_step=8",
        "evaluation.num_rows=4",
        "evaluation.num_samples=0",
        "evaluation.num_token_rows=0",
        "report.enabled=false",
    )

    def ran(preset: str, *words: str) -> Outcome:
        return run_recipe(load(preset, [f"output={tmp_path / preset}", *words, *few]))

    written = "evaluation.written_rows=4"
    base = ran("reasoning_base")
    dense = ran("padd_small_teacher", f"student.model={base.student}", written).student
    experts = Source(
        model=str(dense),
        output=tmp_path / "moe",
        calibration="preset:reasoning_base.jsonl",
        num_rows=8,
    )
    upcycle_model(experts, UpcycledStudent(experts=8, active=2))
    teacher = f"teacher.model={dense}"
    warm = ran("padd_small_warm_up", f"student.model={tmp_path / 'moe'}", teacher)
    without = f"student.model={warm.folder / 'baselines' / 'no_stage_one' / 'student'}"
    others = [f"baselines.{name}.{without}" for name in ("no_stage_one", "grpo", "online_kd")]
    outcome = ran("padd_small", f"student.model={warm.student}", teacher, written, *others)
    names = [row["name"] for row in outcome.summary["rows"]]
    stages = ("no_stage_one", "no_stage_two", "no_stage_three", "no_stage_four")
    assert names == ["before", *stages, "grpo", "online_kd", "distilled", "teacher"]
    for line in logged(outcome.folder):
        assert {"policy_loss", "distill_loss", "routing_shift", "router_bias"} <= line.keys()
    for line in logged(outcome.folder / "baselines" / "grpo"):
        assert "distill_loss" not in line
        assert {"clip_fraction", "router_loss"} <= line.keys()


@pytest.mark.parametrize("balance", ["none", "reward_bias", "switch_loss"])
@pytest.mark.parametrize("policy", ["{kind: pr_grpo, replay_routing: true}", "rspo"])
def test_a_mixture_of_experts_learns_by_a_policy_that_hears_its_routers(
    data: str, tmp_path: Path, policy: str, balance: str
) -> None:
    folder = tmp_path / "mixture"
    tiny_moe_model("qwen3_moe").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    recipe = recipe_of(
        data,
        tmp_path,
        f"student={{kind: loaded, model: {folder}}}",
        "move=reward_temperature",
        f"policy={policy}",
        f"routing={{balance: {{kind: {balance}}}}}",
        "training.reduction=sequence_mean",
        "training.updates_per_batch=2",
        "baselines={without_iii: {policy: {kind: grpo}}, vanilla: {objective: policy_gradient}}",
    )
    outcome = run_recipe(recipe)
    for where in (outcome.folder, outcome.folder / "baselines" / "without_iii"):
        shifts = [line["routing_shift"] for line in logged(where)]
        assert [shift == 0 for shift in shifts] == [True, False, True, False]
