"""The doors to language models: how to load one, and what it is once it is here."""

from tutelage.models.anatomy import FAMILIES, Anatomy, anatomy_of, layers_of
from tutelage.models.causal_lm import CausalLM, Layout

__all__ = ["FAMILIES", "Anatomy", "CausalLM", "Layout", "anatomy_of", "layers_of"]
