"""Whole runs that vLLM writes for: one on a given server, one that starts its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.tiny_models import byte_tokenizer, tiny_llama
from tests.vllm.conftest import SIZES, Server, student
from tutelage.cli.main import app
from tutelage.models import CausalLM, save_model
from tutelage.recipes.config import Recipe, from_tree
from tutelage.recipes.run import run_recipe

pytestmark = pytest.mark.vllm

SAME = 2e-4


def run_of(folder: Path, model: Path, teacher: Path, vllm: dict[str, Any], **own: Any) -> Recipe:
    training = {"num_steps": 4, "rows_per_step": 6, "learning_rate": 3e-3, "save_every": 2}
    return from_tree({
        "student": {"kind": "loaded", "model": str(model), "dtype": "float32"},
        "teacher": {"kind": "live", "model": str(teacher), "dtype": "float32"},
        "rollouts": {
            "kind": "student", "data": "preset:tiny.jsonl", "max_prompt_tokens": 96,
            "max_completion_tokens": 16, "temperature": 1.2, "engine": "vllm", "vllm": vllm,
        },
        "objective": {"kind": "reverse_kl"},
        "evaluation": {"num_rows": 0},
        "report": {"enabled": False},
        "keep_checkpoints": True,
        "output": str(folder),
        **own,
        "training": {**training, **own.get("training", {})},
    })  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if line["phase"] == "train"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    save_model(student(), byte_tokenizer(), tmp_path / "student")
    other = CausalLM(tiny_llama(5, **SIZES))
    save_model(other, byte_tokenizer(), tmp_path / "teacher")
    return tmp_path / "student", tmp_path / "teacher"


def test_a_run_is_written_for_by_a_server_and_tells_how_far_it_was(
    vllm_server: Server, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = run_of(tmp_path / "run", *pair, {"mode": "server", "url": vllm_server.url})
    outcome = run_recipe(recipe)
    steps = lines(outcome.folder)
    assert len(steps) == 4
    for line in steps:
        assert line["written_share"] == 1
        assert 0 < line["engine_drift"] <= line["engine_drift_max"] < SAME
        assert 0 <= line["engine_kl"] < SAME
        assert line["engine_age_steps"] == line["engine_retries"] == 0
    assert "by vLLM (at http" in str(outcome.summary["notes"])


def test_weights_that_are_steps_old_are_seen_and_corrected_for(
    vllm_server: Server, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    vllm = {"mode": "server", "url": vllm_server.url, "sync_every": 2}
    found: list[list[dict[str, Any]]] = []
    for name, weighting in (("plain", {}), ("weighed", {"importance": {"highest": 2.0}})):
        recipe = run_of(tmp_path / name, *pair, vllm, training={"weighting": weighting})
        found.append(lines(run_recipe(recipe).folder))
    for steps in found:
        assert [line["engine_age_steps"] for line in steps] == [0, 1, 0, 1]
        assert [line["engine_drift"] > SAME for line in steps] == [False, True, False, True]
    plain, weighed = found
    # The first step is on draws of its own student, the second on older ones.
    assert weighed[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-3)
    assert weighed[1]["grad_norm"] != pytest.approx(plain[1]["grad_norm"], rel=1e-3)


def test_a_run_that_was_killed_between_two_syncs_goes_on_as_if_it_had_not_been(
    vllm_server: Server, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    vllm = {"mode": "server", "url": vllm_server.url, "sync_every": 2}
    # Saved after the first and the third step, with weights in use that no checkpoint has.
    training = {"save_every": 1, "keep_checkpoints": 9}
    recipe = run_of(tmp_path / "run", *pair, vllm, training=training)
    whole = lines(run_recipe(recipe).folder)
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "run/checkpoints" / f"step-{step}")
    for name in ("measured.json", "summary.json"):
        (tmp_path / "run" / name).unlink()
    again = lines(run_recipe(recipe, resume=True).folder)
    assert [line["engine_age_steps"] for line in again] == [0, 1, 0, 1]
    # What is drawn rests on rounding that depends on which rows vLLM had side by side.
    for one, other in zip(whole, again, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["completion_tokens"] == one["completion_tokens"]


def test_a_run_starts_a_vllm_of_its_own_for_a_mixture_of_experts_and_takes_it_down(
    vllm_python: str, tmp_path: Path
) -> None:
    dense = CausalLM(tiny_llama(5, **{**SIZES, "intermediate_size": 128}))
    save_model(dense, byte_tokenizer(), tmp_path / "dense")
    words = ["upcycle", "--from", str(tmp_path / "dense"), "--experts", "4", "--active", "2"]
    made = CliRunner().invoke(app, [*words, "--rows", "4", "-o", str(tmp_path / "experts")])
    assert made.exit_code == 0, made.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "experts")
    assert model.config.model_type == "mixtral"
    weights = tmp_path / "weights"
    vllm = {
        "python": vllm_python, "cache_gigabytes": 0.25, "arguments": ["--enforce-eager"],
        "weights_folder": str(weights),
    }  # fmt: skip
    recipe = run_of(
        tmp_path / "run", tmp_path / "experts", tmp_path / "dense", vllm, training={"num_steps": 3}
    )
    steps = lines(run_recipe(recipe).folder)
    assert len(steps) == 3
    # The trainer's own forward is transformers' Mixtral: each step's weights have arrived.
    assert all(0 < line["engine_drift_max"] < SAME for line in steps), steps
    assert list(weights.iterdir()) == []
