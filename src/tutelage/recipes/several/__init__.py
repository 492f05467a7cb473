"""Several teachers in recipes: checked against each other, and built, each in its own mode."""

from tutelage.recipes.several.build import build_several
from tutelage.recipes.several.check import contradictions_among, told_of_several

__all__ = ["build_several", "contradictions_among", "told_of_several"]
