"""Runs whose teacher has another tokenizer than the student."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FAST
from tests.tiny_models import tiny_llama
from tests.tiny_tokenizers import byte_level, sentence_piece
from tutelage.core.errors import TutelageError
from tutelage.core.run_log import read_metrics
from tutelage.models import CausalLM, save_model
from tutelage.recipes.assemble import assemble
from tutelage.recipes.caching.make import CachePlan, make_cache
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.doctor import examine
from tutelage.recipes.narrator import Silence
from tutelage.recipes.run import run_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    student, teacher = byte_level(), sentence_piece()
    save_model(CausalLM(tiny_llama(0, vocab_size=len(student) + 6)), student, tmp_path / "student")
    sizes: dict[str, Any] = {"vocab_size": len(teacher) + 3, "hidden_size": 48}
    save_model(CausalLM(tiny_llama(1, **sizes)), teacher, tmp_path / "teacher")
    rows = [
        {"prompt": f"{n} and", "completion": f" {n + 1}, dèjà the teacher read."} for n in range(16)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe_of(folder: Path, objective: str, *overrides: str) -> Recipe:
    own = (
        f"student={folder / 'student'}",
        f"rollouts={{data: {folder / 'rows.jsonl'}}}",
        f"teacher={folder / 'teacher'}",
        f"output={folder / 'run'}",
        f"objective={objective}",
    )
    return load("tiny", [*FAST, "baselines={}", *own, *overrides])


@pytest.mark.parametrize("objective", ["aligned_kl", "uld", "dual_space"])
def test_a_student_learns_from_a_teacher_with_another_tokenizer(
    folder: Path, objective: str
) -> None:
    recipe = recipe_of(folder, objective, "training.num_steps=12")
    outcome = run_recipe(recipe)
    lines = read_metrics(outcome.folder / "metrics.jsonl", phase="train")
    losses = [line["loss"] for line in lines]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert 0.2 < lines[0]["aligned_single_share"] < lines[0]["aligned_token_share"] == 1
    held_out = read_metrics(outcome.folder / "metrics.jsonl", phase="eval")
    assert held_out[-1]["held_out_loss"] < held_out[0]["held_out_loss"]
    before, after, teacher = outcome.summary["rows"]
    # What uld learns is the shape of the teacher's distribution, not its words.
    assert objective != "aligned_kl" or after["aligned_kl"] < before["aligned_kl"]
    assert teacher["bits_per_byte"] > 0


def test_an_interrupted_run_with_projections_goes_on_bit_for_bit(folder: Path) -> None:
    whole = run_recipe(recipe_of(folder, "dual_space", "keep_checkpoints=true"))
    weights = (whole.student / "model.safetensors").read_bytes()
    saved = (whole.folder / "checkpoints" / "step-4" / "student.safetensors").read_bytes()
    assert b"bridge.to_teacher.weight" in saved
    assert b"bridge" not in weights
    shutil.rmtree(whole.folder / "checkpoints" / "step-4")
    measured = json.loads((whole.folder / "measured.json").read_text())
    measured.pop("after")
    (whole.folder / "measured.json").write_text(json.dumps(measured))
    recipe = recipe_of(folder, "dual_space", "keep_checkpoints=true")
    again = run_recipe(recipe, resume=True)
    assert (again.student / "model.safetensors").read_bytes() == weights
    resumed = again.folder / "checkpoints" / "step-4" / "student.safetensors"
    assert resumed.read_bytes() == saved


def test_a_student_that_writes_is_read_in_the_teachers_tokens(folder: Path) -> None:
    extra = ("rollouts.kind=student", "rollouts.max_completion_tokens=6")
    outcome = run_recipe(recipe_of(folder, "aligned_kl", *extra))
    lines = read_metrics(outcome.folder / "metrics.jsonl", phase="train")
    assert all(line["aligned_byte_share"] > 0.5 and line["loss"] > 0 for line in lines)


def test_doctor_says_how_well_they_fit(folder: Path) -> None:
    found = examine(recipe_of(folder, "aligned_kl"))
    assert {one.subject for one in found if one.verdict == "wrong"} <= {"end of turn"}
    told = [one.text for one in found if one.subject == "tokenizers"]
    assert "334 and 404 entries" in told[0]
    assert "the teacher reads '</s>' as '<eos>'" in told[1]
    assert "have no partner; 100.0% of the bytes are aligned and 0 rows lost" in told[2]


@pytest.mark.parametrize(
    ("objective", "overrides", "complaint"),
    [
        ("forward_kl", (), "an objective across vocabularies, such as objective.kind: aligned_kl"),
        ("aligned_kl", ("move=taid",), "move.kind is taid, and the teacher has another tokenizer"),
        ("uld", ("rollouts.kind=teacher",), "the teacher is to write, and the teacher has another"),
        ("uld", ("rollouts.trained_turns=all",), "rollouts.trained_turns is all, and the teacher"),
        ("uld", ("evaluation.written_rows=2",), "evaluation.written_rows is 2, and the teacher"),
    ],
)
def test_what_does_not_go_with_two_tokenizers_is_said(
    folder: Path, objective: str, overrides: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(TutelageError, match=re.escape(complaint)):
        assemble(recipe_of(folder, objective, *overrides), None, Silence())


def test_several_and_cached_teachers_with_other_tokenizers_are_refused(folder: Path) -> None:
    member = f"{{kind: live, model: {folder / 'teacher'}}}"
    several = f"teacher={{kind: several, teachers: {{one: {member}, two: {member}}}}}"
    with pytest.raises(TutelageError, match=r"teacher\.kind is several, and the teacher has"):
        assemble(recipe_of(folder, "aligned_kl", several), None, Silence())
    with pytest.raises(TutelageError, match=r"must have the same to be cached"):
        make_cache(recipe_of(folder, "aligned_kl"), folder / "cache", CachePlan())


def test_the_example_is_a_recipe_that_runs(folder: Path) -> None:
    example = Path(__file__).parents[3] / "examples" / "other_tokenizer.yaml"
    own = (
        f"student.model={folder / 'student'}",
        f"rollouts={{data: {folder / 'rows.jsonl'}}}",
        f"teacher={folder / 'teacher'}",
        f"output={folder / 'run'}",
        "training.num_steps=2",
        "training.warmup_steps=0",
        "evaluation={num_rows: 4, num_samples: 0, num_token_rows: 0}",
        "report={enabled: false}",
        "baselines={}",
    )
    assert load(str(example)).objective.kind == "aligned_kl"
    assert run_recipe(load(str(example), own)).step == 2
