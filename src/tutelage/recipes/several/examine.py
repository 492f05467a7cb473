"""Teachers that are not loaded, looked over before a run: caches and servers, alone or several."""

from collections.abc import Iterator

from tutelage.core.errors import TutelageError
from tutelage.recipes.caching import Language, Looked, look_over
from tutelage.recipes.config import (
    CachedTeacherSettings,
    Recipe,
    RemoteTeacherSettings,
    SeveralTeacherSettings,
)
from tutelage.recipes.narrator import Silence
from tutelage.recipes.pair import each_teacher
from tutelage.recipes.remote import look_at_server
from tutelage.recipes.rows import Rows
from tutelage.recipes.several.build import own_rows, shares


def look_elsewhere(recipe: Recipe, rows: Rows, language: Language) -> Iterator[tuple[str, Looked]]:
    """What was looked at, and what was found; an error is a finding.

    Raises:
        DataError: a row names no teacher.
    """
    if not isinstance(recipe.teacher, SeveralTeacherSettings):
        yield from _look(recipe, rows, language, "")
        return
    by, each = shares(recipe, rows, Silence()), each_teacher(recipe)
    for name, one in each.items():
        yield from _look(one, own_rows(rows, by, [*each], name), language, f" of {name}")


def _look(
    recipe: Recipe, rows: Rows, language: Language, whose: str
) -> Iterator[tuple[str, Looked]]:
    match recipe.teacher:
        case CachedTeacherSettings():
            where, look = f"cache{whose}", look_over
        case RemoteTeacherSettings():
            where, look = f"server{whose}", look_at_server
        case _:
            return
    try:
        for looked in look(recipe, rows, language):
            yield where, looked
    except TutelageError as error:
        yield where, Looked(wrong=True, text=str(error))
