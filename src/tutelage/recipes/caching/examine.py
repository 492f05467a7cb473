"""A cache looked over: is it whole, does it hold the rows, does its teacher still say the same."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch

from tutelage.core.errors import TutelageError
from tutelage.core.records import Rollout
from tutelage.core.settings import Settings
from tutelage.models import parameter_count
from tutelage.recipes.caching.serve import Language, missing_rows, stale
from tutelage.recipes.config import CachedTeacherSettings, Recipe
from tutelage.recipes.pair import load_teacher, teacher_config
from tutelage.recipes.rows import Rows
from tutelage.teachers import LiveTeacher
from tutelage.teachers.cache import (
    PARTS,
    AnswerSettings,
    CacheFolder,
    answers_of,
    stored,
    weights_hash,
)
from tutelage.text import collate, key_of

_MOST_PARAMETERS = 10**9
"""A larger teacher is not loaded to be compared with."""
_ROWS_COMPARED = 3
_ROUNDING = {"float32": 1e-4, "bfloat16": 2**-6, "float16": 2**-9}


@final
class Looked(Settings):
    """One thing that was looked at."""

    wrong: bool
    text: str


def look_over(recipe: Recipe, rows: Rows, language: Language) -> Iterator[Looked]:
    """Everything about the cache of a recipe, whatever of it is wrong.

    Raises:
        DataError: it has no manifest that can be read.
    """
    assert isinstance(recipe.teacher, CachedTeacherSettings)  # noqa: S101  the caller has looked
    cache = CacheFolder(Path(recipe.teacher.folder))
    yield from _files(cache)
    lines = [*stale(cache.identity, recipe, language)]
    yield from (Looked(wrong=True, text=line) for line in lines)
    lines = [*missing_rows(cache, rows)]
    yield from (Looked(wrong=True, text=line) for line in lines)
    if not lines:
        every = len(rows.training) + len(rows.held_out)
        yield Looked(wrong=False, text=f"holds all {every:,} rows of this recipe")
    yield from _parity(cache, recipe, rows)


def _files(cache: CacheFolder) -> Iterator[Looked]:
    cache.head()
    for part in PARTS:
        store = cache.store(part)
        for entry, complaint in store.verify():
            if complaint is not None:
                yield Looked(wrong=True, text=f"{store.folder / entry.file} {complaint}")
        per_token = store.num_bytes / max(store.num_tokens, 1)
        form = answers_of(cache.identity, part)
        yield Looked(
            wrong=False,
            text=f"{part.replace('_', '-')}: {form.answer} answers in {form.dtype}, "
            f"{store.num_rows:,} rows, {per_token:,.0f} bytes a token",
        )


def _parity(cache: CacheFolder, recipe: Recipe, rows: Rows) -> Iterator[Looked]:
    """The same numbers from the teacher itself, where it is small enough to be asked."""
    config = teacher_config(recipe)
    assert config is not None  # noqa: S101  a cache keeps its teacher's
    num_parameters = parameter_count(config).total
    if num_parameters > _MOST_PARAMETERS:
        text = f"its teacher has {num_parameters / 1e9:.1f} G parameters and was not asked again"
        yield Looked(wrong=False, text=text)
        return
    try:
        model = load_teacher(recipe, torch.device("cpu"))
    except TutelageError as error:
        yield Looked(wrong=False, text=f"its teacher cannot be asked again: {error}")
        return
    if weights_hash(model.lm.model) != cache.identity.weights:
        text = "its teacher's weights are others than when it was made; make the cache again"
        yield Looked(wrong=True, text=text)
        return
    teacher = LiveTeacher(model.lm, num_real=cache.identity.num_real)
    store = cache.store("training")
    some = [row for row in rows.training if key_of(row) in store][:_ROWS_COMPARED]
    if some:
        yield _compared(cache, teacher, some)


def _compared(cache: CacheFolder, teacher: LiveTeacher, rows: Sequence[Rollout]) -> Looked:
    form, store = answers_of(cache.identity, "training"), cache.store("training")
    name = {"hidden": "hidden", "top_k": "logp", "sampled": "entropy"}[form.answer]
    worst = 0.0
    for row in rows:
        key = key_of(row)
        target = teacher.score(collate([row]))
        now = stored(replace(target, labels=None), _exact(form), key=key)[name].float()
        then = store.read(key)[0][name].float()
        worst = max(worst, float(((now - then).abs() / (1 + now.abs())).max()))
    allowed = _ROUNDING["float32" if name == "entropy" else form.dtype]
    text = f"its teacher says the same on {len(rows)} rows, within {worst:.1e}"
    if worst > allowed:
        text = (
            f"its teacher's {name} is off by {worst:.1e} on {len(rows)} rows, where storage "
            f"explains {allowed:.1e}; make the cache again"
        )
    return Looked(wrong=worst > allowed, text=text)


def _exact(form: AnswerSettings) -> AnswerSettings:
    return form.model_copy(update={"dtype": "float32"})
