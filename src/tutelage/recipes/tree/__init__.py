"""Plain trees of settings: read from YAML with overrides, and what is wrong with them in words."""

from tutelage.recipes.tree.complaints import complaints, kinds_of, models_in
from tutelage.recipes.tree.reading import Plain, merged, overridden, preset_names, read_recipe

__all__ = [
    "Plain",
    "complaints",
    "kinds_of",
    "merged",
    "models_in",
    "overridden",
    "preset_names",
    "read_recipe",
]
