"""What a cache cannot do for a recipe, found in its manifest before anything is loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.targets import Rest
from tutelage.recipes.config import CachedTeacherSettings, Recipe, baseline
from tutelage.recipes.rows import writes
from tutelage.recipes.teaching import contradictions_of_answers
from tutelage.teachers.cache import AnswerSettings, CacheFolder, load_identity


def contradictions_with_cache(recipe: Recipe) -> Iterator[str]:
    """One line each: the dotted path, what it is, what it must be, what to do."""
    settings = recipe.teacher
    if not isinstance(settings, CachedTeacherSettings):
        return
    yield from _of_rows(recipe)
    try:
        answers = load_identity(Path(settings.folder)).answers
    except DataError as error:
        yield f"teacher.folder is {settings.folder}: {error}"
        return
    if settings.rest is not None and answers.answer != "top_k":
        yield (
            f"teacher.rest is {settings.rest}, and the cache holds {answers.answer} answers, which "
            "have none; it must be left out. Remove it."
        )
    yield from _of_answers(recipe, answers, settings.rest)


def refuse_recipe(recipe: Recipe, answers: AnswerSettings) -> None:
    """Refuse to cache what a run by the recipe, or by one of its baselines, could not use.

    Raises:
        ConfigError: a line for each reason.
    """
    lines: list[str] = []
    if recipe.teacher is None or recipe.teacher.kind not in ("live", "toy"):
        kind = "missing" if recipe.teacher is None else recipe.teacher.kind
        lines.append(
            f"teacher.kind is {kind}; it must be live to be cached, a model with weights of its "
            "own. Name it in teacher.model."
        )
    lines += _of_rows(recipe)
    lines += _of_answers(recipe, answers, None)
    for name in recipe.baselines:
        other = _of_answers(baseline(recipe, name), answers, None)
        lines += [f"baselines.{name}.{line}" for line in other]
    if lines:
        raise ConfigError("\n".join(lines))


def _of_rows(recipe: Recipe) -> Iterator[str]:
    if writes(recipe.rollouts):
        yield (
            f"rollouts.kind is {recipe.rollouts.kind}, and what is written while the run goes on "
            "is in no cache; it must be dataset. Let the student write once, save its completions "
            "as rows of a file and cache those, or use a live teacher."
        )
    if recipe.evaluation.written_rows:
        yield (
            f"evaluation.written_rows is {recipe.evaluation.written_rows}, and a cache does not "
            "know what will be written; it must be 0. Leave it out, or use a live teacher."
        )


def _of_answers(recipe: Recipe, answers: AnswerSettings, rest: Rest | None) -> Iterator[str]:
    yield from contradictions_of_answers(
        recipe.objective, recipe.move, answers.answer, temperature=answers.temperature, rest=rest
    )


def told_of(settings: CachedTeacherSettings) -> str:
    """What a cache holds, in words."""
    cache = CacheFolder(Path(settings.folder))
    identity, store = cache.identity, cache.store("training")
    answers = identity.answers
    form = {
        "hidden": "hidden states",
        "top_k": f"top {answers.num_entries}",
        "sampled": f"{answers.num_samples} draws",
    }[answers.answer]
    whose = identity.teacher.get("model", identity.teacher.get("kind"))
    per_token = store.num_bytes / max(store.num_tokens, 1)
    return (
        f"cached: {form} of {whose} in {answers.dtype}, {store.num_rows:,} rows, "
        f"{per_token:,.0f} bytes a token"
    )


def head_bytes(settings: CachedTeacherSettings) -> int:
    """What the teacher's head takes, which is all of the teacher that is loaded."""
    path = Path(settings.folder) / "head.safetensors"
    return path.stat().st_size if path.is_file() else 0


def who_teaches(settings: CachedTeacherSettings) -> dict[str, Any]:
    """What a run must not go on without: whose answers a cache holds, and in which form."""
    identity = load_identity(Path(settings.folder))
    named = identity.model_dump(mode="json", include={"teacher", "weights", "answers"})
    return {"kind": settings.kind, "cache": named}
