"""Heads of one family padded differently: no teacher mode may notice rows that mean nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import FAST
from tests.tiny_models import VOCABULARY, byte_tokenizer, tiny_llama
from tutelage.core.run_log import read_metrics
from tutelage.models import CausalLM, save_model
from tutelage.recipes.caching.make import CachePlan, make_cache
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.run import run_recipe

STUDENT = VOCABULARY + 4


def padded(num_rows: int, seed: int, folder: Path) -> None:
    """The same model with so many entries; those behind the tokenizer's are loud and wrong."""
    model, plain = tiny_llama(seed, vocab_size=num_rows), tiny_llama(seed)
    state = model.state_dict()
    with torch.no_grad():
        for name, weight in plain.state_dict().items():
            if weight.shape == state[name].shape:
                state[name].copy_(weight)
                continue
            state[name].fill_(3.0)
            state[name][:VOCABULARY] = weight
    save_model(CausalLM(model), byte_tokenizer(), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("padded")
    padded(STUDENT, 0, folder / "student")
    for name, size in (("narrower", VOCABULARY), ("same", STUDENT), ("wider", STUDENT + 8)):
        padded(size, 1, folder / name)
    rows = [{"prompt": f"{n} and", "completion": f"{n + 1}."} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe_of(models: Path, output: Path, teacher: str) -> Recipe:
    own = (
        f"student={models / 'student'}",
        f"rollouts={{data: {models / 'rows.jsonl'}}}",
        f"teacher={teacher}",
        f"output={output}",
    )
    return load("tiny", [*FAST, "baselines={}", *own])


def teacher_of(models: Path, mode: str, size: str, folder: Path) -> str:
    live = f"{{kind: live, model: {models / size}}}"
    if mode == "live":
        return live
    if mode == "several":
        other = f"{{kind: live, model: {models / 'same'}}}"
        return f"{{kind: several, by: mixture, teachers: {{one: {live}, other: {other}}}}}"
    plan: dict[str, Any] = {"answer": mode, "num_entries": 16, "dtype": "float32"}
    make_cache(recipe_of(models, folder / "unused", live), folder / "cache", CachePlan(**plan))
    return f"{{kind: cached, folder: {folder / 'cache'}}}"


def numbers_of(models: Path, mode: str, size: str, folder: Path) -> list[float]:
    recipe = recipe_of(models, folder / "run", teacher_of(models, mode, size, folder))
    outcome = run_recipe(recipe)
    lines = read_metrics(outcome.folder / "metrics.jsonl", phase="train")
    measured = [row["forward_kl"] for row in outcome.summary["rows"][:2]]
    return [*(line["loss"] for line in lines), *measured]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "hidden", "top_k", "sampled", "several"])
def test_a_teachers_padding_changes_nothing_in_any_mode(
    models: Path, mode: str, tmp_path: Path
) -> None:
    same = numbers_of(models, mode, "same", tmp_path / "same")
    for size in ("narrower", "wider"):
        assert numbers_of(models, mode, size, tmp_path / size) == pytest.approx(same, rel=1e-4)
    assert len(set(same)) == len(same)
