"""A cache opened for a run: proved to speak its language and to hold every one of its rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout
from tutelage.recipes.config import CachedTeacherSettings, Recipe
from tutelage.recipes.rows import Rows
from tutelage.teachers import CachedTeacher
from tutelage.teachers.cache import PARTS, CacheFolder, Identity, Store
from tutelage.text import key_of, template_hash, tokenizer_hash

_NAMED = 3


@final
@dataclass(frozen=True, kw_only=True)
class Language:
    """What rows are read with, and how many of its words both models know."""

    tokenizer: PreTrainedTokenizerBase
    num_real: int | None


def open_cache(
    recipe: Recipe, rows: Rows, language: Language, *, device: torch.device
) -> tuple[CachedTeacher, CachedTeacher]:
    """Who answers for training rows, and who for held-out ones.

    Raises:
        DataError: the cache was made with another tokenizer or template, or lacks a row.
    """
    assert isinstance(recipe.teacher, CachedTeacherSettings)  # noqa: S101  the caller has looked
    cache = CacheFolder(Path(recipe.teacher.folder))
    lines = [*stale(cache.identity, recipe, language), *missing_rows(cache, rows)]
    if lines:
        raise DataError("\n".join(lines))
    return (
        CachedTeacher(cache, rest=recipe.teacher.rest, device=device),
        CachedTeacher(cache, part="held_out", device=device),
    )


def stale(identity: Identity, recipe: Recipe, language: Language) -> Iterator[str]:
    """What has changed since the cache was made, a line each."""
    where = recipe.teacher.folder if isinstance(recipe.teacher, CachedTeacherSettings) else ""
    again = "Make the cache again, or restore what it was made with."
    if language.num_real != identity.num_real and identity.answers.answer != "hidden":
        yield (
            f"Student and teacher share {language.num_real} entries of the vocabulary and the "
            f"cache {where} is over {identity.num_real}; they must be as many. {again}"
        )
        return
    shared = min(language.num_real or identity.num_real, identity.num_real)
    words = tokenizer_hash(language.tokenizer, num_words=shared)
    if shared == identity.num_real and words != identity.tokenizer:
        yield (
            f"The tokenizer is not that of the cache {where} (hash {words}, {identity.tokenizer} "
            f"there); it must be the same. {again}"
        )
    template = template_of(recipe, language.tokenizer)
    if template != identity.template:
        yield (
            f"The chat template is not that of the cache {where} (hash {template}, "
            f"{identity.template} there); it must be the same, arguments included. {again}"
        )


def template_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash over how the recipe's conversations become text."""
    rollouts = recipe.rollouts
    return template_hash(
        tokenizer,
        chat_template=rollouts.chat_template,
        teacher_template=rollouts.teacher_template,
        arguments=rollouts.template_arguments,
    )


def missing_rows(cache: CacheFolder, rows: Rows) -> Iterator[str]:
    """Rows that the cache does not hold, in a line for each part."""
    for part, some in zip(PARTS, (rows.training, rows.held_out), strict=True):
        store = cache.store(part)
        missing = [row for row in some if key_of(row) not in store]
        if missing:
            yield _complaint(cache.root, store, missing, f"{len(some)} {part.replace('_', '-')}")


def _complaint(root: Path, store: Store, missing: Sequence[Rollout], of_what: str) -> str:
    known = {name for _, name in store.names()}
    named = [
        f"{row.prompt.name or key_of(row)}"
        + (" (stale: it was cached with other tokens)" if row.prompt.name in known else "")
        for row in missing[:_NAMED]
    ]
    more = ", ..." if len(missing) > _NAMED else ""
    return (
        f"{len(missing)} of {of_what} rows are not in the cache {root}: {', '.join(named)}{more}. "
        "Every row must be; run `tutelage cache` with this recipe's rows and the same folder to "
        "add them."
    )
