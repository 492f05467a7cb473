"""A teacher's answers on disk, in recipes: made, checked before a run, opened, examined."""

from tutelage.recipes.caching.check import (
    contradictions_with_cache,
    head_bytes,
    refuse_recipe,
    told_of,
    who_teaches,
)
from tutelage.recipes.caching.examine import Looked, look_over
from tutelage.recipes.caching.serve import Language, missing_rows, open_cache, stale

__all__ = [
    "Language",
    "Looked",
    "contradictions_with_cache",
    "head_bytes",
    "look_over",
    "missing_rows",
    "open_cache",
    "refuse_recipe",
    "stale",
    "told_of",
    "who_teaches",
]
