"""Live teachers that do not fit together: each loaded alone once, its answers kept for the run."""

import gc
import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import final

from typing_extensions import TypeIs

from tutelage.core.errors import DataError
from tutelage.recipes.caching import Language, missing_rows, stale
from tutelage.recipes.caching.make import CachePlan, fill_cache
from tutelage.recipes.config import (
    CachedTeacherSettings,
    LiveTeacherSettings,
    Recipe,
    ToyTeacherSettings,
)
from tutelage.recipes.narrator import Narrator
from tutelage.recipes.rows import Rows
from tutelage.teachers.cache import CacheFolder
from tutelage.training import Ranks


@final
@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Where answers are kept, and who writes them."""

    folder: Path
    language: Language
    ranks: Ranks
    narrator: Narrator

    def kept(self, name: str, number: int, recipe: Recipe, rows: Rows) -> Recipe:
        """The recipe with the answers of its live teacher in that teacher's place.

        One that has no weights here stays as it is. What is there already is not made again, and
        a teacher of whom nothing is missing is not loaded.

        Raises:
            OutputError: the folder holds answers of another teacher, or cannot be written.
        """
        if not is_loaded(recipe.teacher):
            return recipe
        # A name may hold anything; the number alone tells teachers apart.
        folder = self.folder / f"{number}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
        cached = recipe.model_copy(update={"teacher": CachedTeacherSettings(folder=str(folder))})

        def write() -> None:
            if _is_whole(folder, recipe, cached, rows, self.language):
                return
            self.narrator.say(f"note: the answers of the teacher {name} are kept in {folder}")
            fill_cache(recipe, rows, self.language, folder, CachePlan(), narrator=self.narrator)
            # Models hold themselves in circles: the next one must find this one's memory free.
            gc.collect()

        self.ranks.together_on_main(write)
        return cached


def _is_whole(folder: Path, recipe: Recipe, cached: Recipe, rows: Rows, language: Language) -> bool:
    """Whether all answers are there, of this very teacher, by this tokenizer and template."""
    assert recipe.teacher is not None  # noqa: S101  it is a live one
    try:
        cache = CacheFolder(folder)
        cache.head()
        lines = [*stale(cache.identity, cached, language), *missing_rows(cache, rows)]
    except DataError:
        return False
    told = recipe.teacher.model_dump(mode="json")
    same = all(told.get(name) == value for name, value in cache.identity.teacher.items())
    return same and cache.identity.num_real == language.num_real and not lines


def is_loaded(settings: object) -> TypeIs[LiveTeacherSettings | ToyTeacherSettings]:
    """Whether a teacher has weights here."""
    return isinstance(settings, LiveTeacherSettings | ToyTeacherSettings)


def passing_folder(owner: object) -> Path:
    """A folder that goes when its owner does, or the process."""
    folder = Path(tempfile.mkdtemp(prefix="tutelage-answers-"))
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder
