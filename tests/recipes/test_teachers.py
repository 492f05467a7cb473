"""Runs with a live teacher from a folder: who it is, in what it is held, and what it reads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import FAST
from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.core.errors import CheckpointError
from tutelage.models import CausalLM, save_model
from tutelage.recipes.assemble import assemble, make_student, prepare_rows
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load, varied
from tutelage.recipes.narrator import Silence
from tutelage.recipes.run import Outcome, run_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seed in (("one", 1), ("other", 2)):
        model = CausalLM(tiny_llama(seed, num_hidden_layers=3))
        save_model(model, byte_tokenizer(), tmp_path / name)
    return tmp_path


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    teacher = f"teacher={{kind: live, model: {folder / 'one'}}}"
    return load("tiny", [*FAST, f"output={folder / 'run'}", teacher, "baselines={}", *overrides])


def rows_with_solutions(folder: Path) -> str:
    path = folder / "rows.jsonl"
    rows = (
        {
            "prompt": [{"role": "user", "content": f"What is {n} plus {n}?"}],
            "completion": f"It is {2 * n}.",
            "solution": f"twice {n}",
        }
        for n in range(12)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_teacher_may_read_a_template_of_its_own(folder: Path) -> None:
    data = f"rollouts={{data: {rows_with_solutions(folder)}}}"
    template = "rollouts.teacher_template='{{ row.solution }}: {{ messages[0].content }} = '"
    recipe, plain = recipe_of(folder, data, template), recipe_of(folder, data)
    tokenizer = byte_tokenizer()
    rows = prepare_rows(recipe, tokenizer)
    for row in (*rows.training, *rows.held_out):
        assert row.prompt.teacher_ids is not None
        read = tokenizer.decode(row.prompt.teacher_ids)
        n = read.split()[1].strip(":")
        assert read == f"twice {n}: What is {n} plus {n}? = "
    assert all(row.prompt.teacher_ids is None for row in prepare_rows(plain, tokenizer).training)
    told, untold = run_recipe(recipe).summary["rows"], summary_of(plain, folder / "plain")
    assert told[0]["perplexity"] == untold[0]["perplexity"]
    assert told[0]["forward_kl"] != untold[0]["forward_kl"]


def summary_of(recipe: Recipe, output: Path) -> Any:
    return run_recipe(varied(recipe, {"output": str(output)})).summary["rows"]


def test_a_template_that_nobody_reads_is_refused(folder: Path) -> None:
    words = ("rollouts.teacher_template=x", "objective=cross_entropy", "teacher=null")
    recipe = recipe_of(folder, *words, f"student={folder / 'one'}")
    (line,) = contradictions(recipe)
    assert line.startswith("rollouts.teacher_template is given, and there is no teacher")


def test_a_teacher_held_in_bfloat16_gives_a_student_whose_weights_are_not(folder: Path) -> None:
    held = ("teacher.dtype=bfloat16", "training.precision=bf16", "training.learning_rate=1e-5")
    recipe = recipe_of(folder, *held, "training.num_steps=2")
    work = assemble(recipe, None, Silence())
    assert work.teacher_model is not None
    first = dict(make_student(recipe, work).lm.model.named_parameters())
    outcome = run_recipe(recipe, work=work)
    last = load_file(outcome.student / "model.safetensors")
    assert {weight.dtype for weight in last.values()} == {torch.float32}
    assert {weight.dtype for weight in work.teacher_model.lm.parameters()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], first[name].bfloat16().float())
    # Steps far smaller than the spacing of bfloat16 are kept.
    moved = (last[name] - first[name]).abs().max()
    assert 1e-6 < moved < 1e-4
    assert not torch.equal(last[name], last[name].bfloat16().float())


def stop_after_two_steps(outcome: Outcome) -> None:
    """Leave the folder as if the run had been killed between its two checkpoints."""
    shutil.rmtree(outcome.folder / "checkpoints" / "step-4")
    measured = outcome.folder / "measured.json"
    done = json.loads(measured.read_text())
    done.pop("after")
    measured.write_text(json.dumps(done))


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("teacher.model", "other", r"teacher\.model is .*other; it must be .*one, as in .*step-2"),
        ("teacher.dtype", "bfloat16", r"teacher\.dtype is bfloat16; it must be float32"),
        ("teacher", "{kind: toy}", r"teacher\.kind is toy; it must be live"),
    ],
)
def test_a_run_does_not_go_on_with_another_teacher(
    folder: Path, setting: str, value: str, complaint: str
) -> None:
    stop_after_two_steps(run_recipe(recipe_of(folder, "keep_checkpoints=true")))
    before = (folder / "run" / "metrics.jsonl").read_text()
    value = str(folder / value) if setting == "teacher.model" else value
    with pytest.raises(CheckpointError, match=complaint):
        run_recipe(recipe_of(folder, f"{setting}={value}"), resume=True)
    assert (folder / "run" / "metrics.jsonl").read_text() == before


def test_what_an_answer_does_not_depend_on_may_change(folder: Path) -> None:
    stop_after_two_steps(run_recipe(recipe_of(folder, "keep_checkpoints=true")))
    again = recipe_of(folder, "teacher.remember_megabytes=0", "teacher.dtype=float32")
    assert run_recipe(again, resume=True).step == 4
