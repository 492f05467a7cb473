"""Recipes with several teachers, and the tiny models they are."""

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import FAST
from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.models import CausalLM, save_model
from tutelage.recipes.caching.make import CachePlan, make_cache
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.run import run_recipe

WAYS = ("by: mixture", "by: product, weights: {one: 3, other: 1}", "by: row")


def models_and_rows(folder: Path) -> Path:
    """A student, two teachers of other widths, and rows that name one each."""
    for name, seed, width in (("student", 0, 32), ("one", 1, 32), ("other", 2, 48)):
        sizes: dict[str, Any] = {"hidden_size": width, "vocab_size": 260 if seed else 268}
        save_model(CausalLM(tiny_llama(seed, **sizes)), byte_tokenizer(), folder / name)
    rows = [
        {"prompt": f"{n} and", "completion": f"{n + 1}.", "teacher": ("one", "other")[n % 2]}
        for n in range(16)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def live(folder: Path, name: str) -> str:
    return f"{{kind: live, model: {folder / name}}}"


def remote(folder: Path, url: str, **more: Any) -> str:
    own = {"kind": "remote", "url": url, "model": str(folder / "other"), "retries": 0}
    return json.dumps({**own, "patience_seconds": 0, **more})


def recipe_of(folder: Path, name: str, teacher: str, *overrides: str) -> Recipe:
    own = (
        f"student={folder / 'student'}",
        f"rollouts={{data: {folder / 'rows.jsonl'}}}",
        f"teacher={teacher}",
        f"output={folder / name}",
    )
    return load("tiny", [*FAST, "baselines={}", *own, *overrides])


def several(folder: Path, how: str, *, one: str | None = None, other: str | None = None) -> str:
    both = f"one: {one or live(folder, 'one')}, other: {other or live(folder, 'other')}"
    return f"{{kind: several, {how}, teachers: {{{both}}}}}"


def cached(folder: Path, name: str, **plan: Any) -> str:
    recipe = recipe_of(folder, "unused", live(folder, name))
    make_cache(recipe, folder / f"cache-{name}", CachePlan(**plan))
    return f"{{kind: cached, folder: {folder / f'cache-{name}'}}}"


def trained(recipe: Recipe) -> bytes:
    return (run_recipe(recipe).student / "model.safetensors").read_bytes()
