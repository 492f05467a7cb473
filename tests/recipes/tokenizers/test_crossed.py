"""Runs whose teacher has another tokenizer than the student."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FAST
from tests.tiny_models import tiny_llama
from tests.tiny_tokenizers import byte_level, sentence_piece
from tutelage.core.run_log import read_metrics
from tutelage.models import CausalLM, save_model
from tutelage.recipes.config import Recipe, load
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


@pytest.mark.parametrize(
    "objective", ["aligned_kl", "uld", "{kind: aligned_kl, divergence: {kind: jsd}}"]
)
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
    assert (after["aligned_kl"] < before["aligned_kl"]) == (objective != "uld")
    assert teacher["bits_per_byte"] > 0
