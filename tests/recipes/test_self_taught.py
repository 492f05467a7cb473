"""Recipes whose student teaches itself: settings, refusals, whole runs, what is told of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tests.cli.conftest import FAST
from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.core.errors import ConfigError, DataError
from tutelage.recipes import check
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.doctor import examine
from tutelage.recipes.outline import outline_of
from tutelage.recipes.pair import student_tokenizer
from tutelage.recipes.rows import Rows, prepare_rows, with_views
from tutelage.recipes.run import evaluate_folder, run_recipe
from tutelage.training.state_tree import load_tree


def prepared(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    return with_views(prepare_rows(recipe, tokenizer), recipe, tokenizer)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(max_position_embeddings=2048, eos_token_id=259).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} and 1?"}],
            "completion": [{"role": "assistant", "content": f"{n + 1}"}],
            "solution": f"Count on from {n}: {n + 1}.",
            "answer": n + 1,
        }
        for n in range(14)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def taught(model: str, data: str, folder: Path, *overrides: str) -> Recipe:
    return load(
        "tiny",
        [
            *FAST,
            "baselines={}",
            f"student={{kind: loaded, model: {model}, lora: {{rank: 4, alpha: 8}}}}",
            "teacher={kind: self}",
            f"rollouts.data={data}",
            f"output={folder}",
            *overrides,
        ],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("chosen", ["initial", "average", "live"])
def test_a_student_with_an_adapter_learns_from_itself(model, data, tmp_path, chosen) -> None:
    recipe = taught(model, data, tmp_path / "run", f"teacher.weights={chosen}")
    assert list(contradictions(recipe)) == []
    outcome = run_recipe(recipe)
    log = lines(outcome.folder / "metrics.jsonl")
    assert all(line["loss"] > 0 for line in log if line["phase"] == "train")
    first, last = (line["forward_kl"] for line in log if line["phase"] == "eval")
    assert first > 0
    assert first != last
    saved = AutoModelForCausalLM.from_pretrained(outcome.student)
    before = AutoModelForCausalLM.from_pretrained(model)
    assert not torch.equal(
        saved.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight
    )
    assert torch.equal(saved.lm_head.weight, before.lm_head.weight)
    assert "- teacher: `itself`" in (outcome.student / "README.md").read_text()
    assert evaluate_folder(outcome.folder)["rows"][0]["perplexity"] > 0


def test_a_resumed_run_with_an_average_ends_as_an_unbroken_one(model, data, tmp_path) -> None:
    options = ("teacher.weights=average", "teacher.decay=0.5", "keep_checkpoints=true")
    whole = run_recipe(taught(model, data, tmp_path / "whole", *options))
    recipe = taught(model, data, tmp_path / "broken", *options)
    outcome = run_recipe(recipe)
    state = load_tree(outcome.folder / "checkpoints" / "step-4" / "run")
    assert state["parts"]["teacher"]["decay"] == 0.5
    for path in (outcome.folder / "checkpoints" / "step-4").iterdir():
        path.unlink()
    (outcome.folder / "checkpoints" / "step-4").rmdir()
    done = json.loads((outcome.folder / "measured.json").read_text())
    done.pop("after")
    (outcome.folder / "measured.json").write_text(json.dumps(done))
    again = run_recipe(recipe, resume=True)
    name = "model.safetensors"
    assert (again.student / name).read_bytes() == (whole.student / name).read_bytes()
    ends = [one.summary["rows"][1]["forward_kl"] for one in (again, whole)]
    assert ends[0] == ends[1]


def test_the_adapter_is_saved_by_setting(model, data, tmp_path) -> None:
    recipe = taught(model, data, tmp_path / "run", "student.lora.save=both")
    outcome = run_recipe(recipe)
    assert (outcome.student / "model.safetensors").is_file()
    assert (outcome.student / "adapter" / "adapter_model.safetensors").is_file()
    config = json.loads((outcome.student / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model


def test_a_copy_says_what_memory_it_takes_and_an_adapter_takes_none(model, data, tmp_path) -> None:
    with_adapter = outline_of(taught(model, data, tmp_path))
    without = outline_of(taught(model, data, tmp_path, "student.lora=null"))
    average = outline_of(taught(model, data, tmp_path, "teacher.weights=average"))
    assert with_adapter.memory_megabytes["teacher"] == 0
    assert without.memory_megabytes["teacher"] * 2**20 == 4 * without.student.total
    assert average.memory_megabytes["teacher"] > 0
    told = dict(without.lines())
    assert told["teacher"] == "a frozen copy of the student, shown the row's solution"
    assert "parameters in an adapter, nothing else" in dict(with_adapter.lines())["trained"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["student.lora=null", "teacher.may_copy=false"],
            "with may_copy: false, and student.lora is null; the student must have an adapter",
        ),
        (["teacher.decay=0.5"], "teacher.decay is 0.5, and teacher.weights is initial"),
        (
            ["teacher.weights=live", "teacher.remember_megabytes=5"],
            "teacher.remember_megabytes is 5, and teacher.weights is live, which move",
        ),
        (["teacher.weights=live", "teacher.may_copy=false"], "teacher.may_copy is false, and"),
        (
            ["teacher.context=none", "teacher.column=answer"],
            "teacher.column is answer, and teacher.context is none, which reads none",
        ),
        (["teacher.wording=none.j2"], "teacher.wording is none.j2, which is no file"),
        (["student={kind: pruned, keep_layers: 1}"], "student.model is null, which is the teacher"),
        (["student={kind: fresh}"], "student.kind is fresh, which knows nothing to teach"),
        (["rollouts.trained_turns=all"], "rollouts.trained_turns is all, and teacher.kind is self"),
        (["objective=reverse_kl", "move=taid"], "move.kind is taid with reverse_kl"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(
    model, data, tmp_path, overrides, line
) -> None:
    found = list(contradictions(taught(model, data, tmp_path, *overrides)))
    assert any(line in one for one in found), found


def test_taid_with_a_sampled_token_of_the_student_is_a_ramp(
    model, data, tmp_path, monkeypatch
) -> None:
    # As if forward_kl looked at the sampled token alone.
    monkeypatch.setattr(check, "_SAMPLING", frozenset({"forward_kl"}))
    recipe = taught(model, data, tmp_path, "move=taid")
    (line,) = contradictions(recipe)
    assert "t times the unmoved one and a constant: a learning-rate ramp" in line
    mixed = "objective={kind: weighted_sum, parts: [{weight: 1, objective: {kind: forward_kl}}]}"
    assert "learning-rate ramp" in next(iter(contradictions(taught(
        model, data, tmp_path, "move=taid", mixed
    ))))  # fmt: skip


def test_an_adapter_is_for_students_that_know_something() -> None:
    with pytest.raises(ConfigError, match=r"student\.lora is not a setting of fresh"):
        load("tiny", ["student={kind: fresh, lora: {rank: 2}}"])


def test_a_missing_column_stops_before_any_weight_is_read(model, data, tmp_path) -> None:
    recipe = taught(model, data, tmp_path, "teacher.column=worked")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: column worked is missing"):
        prepared(recipe, student_tokenizer(recipe))


def test_a_wording_of_the_package_goes_by_its_name(model, data, tmp_path) -> None:
    recipe = taught(model, data, tmp_path, "teacher.wording=brief")
    assert list(contradictions(recipe)) == []
    tokenizer = student_tokenizer(recipe)
    row = prepared(recipe, tokenizer).training[0]
    assert "Now answer the question." in str(tokenizer.decode(row.prompt.teacher_ids))


def test_held_out_rows_lend_no_solution_to_training_rows(model, data, tmp_path) -> None:
    recipe = taught(model, data, tmp_path, "teacher.context=other")
    tokenizer = student_tokenizer(recipe)
    rows = prepared(recipe, tokenizer)
    held_out = {f"Count on from {n}:" for n in range(10, 14)}
    for row in rows.training:
        text = str(tokenizer.decode(row.prompt.teacher_ids))
        assert "Count on from" in text
        assert not any(one in text for one in held_out)
    assert len(rows.held_out) == 4


def test_the_doctor_tells_the_two_views_apart(model, data, tmp_path) -> None:
    found = examine(taught(model, data, tmp_path / "run"))
    assert [one for one in found if one.verdict == "wrong"] == []
    told = [one.text for one in found if one.subject == "privileged context"]
    assert any("both end where the same completion starts" in text for text in told)
    control = examine(taught(model, data, tmp_path / "run", "teacher.context=none"))
    told = [one.text for one in control if one.subject == "privileged context"]
    assert any("read alike by teacher and student" in text for text in told)
    assert any("is a control" in text for text in told)
    cut = examine(taught(model, data, tmp_path / "run", "teacher.max_prompt_tokens=380"))
    assert any("were cut in the middle" in one.text for one in cut)
