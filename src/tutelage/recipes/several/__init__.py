"""Several teachers in recipes: checked against each other, and built, each in its own mode."""

from tutelage.recipes.several.build import build_several
from tutelage.recipes.several.check import contradictions_among, told_of_several
from tutelage.recipes.several.examine import look_elsewhere
from tutelage.recipes.several.identity import NOT_WHO_TEACHES, who_teach

__all__ = [
    "NOT_WHO_TEACHES",
    "build_several",
    "contradictions_among",
    "look_elsewhere",
    "told_of_several",
    "who_teach",
]
