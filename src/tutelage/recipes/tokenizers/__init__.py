"""A teacher with another tokenizer in recipes: its prompts, its assembly, what of it fits."""

from tutelage.recipes.tokenizers.build import (
    TwoLanguages,
    add_bridge,
    translating_teacher,
    two_languages,
    with_teacher_prompts,
)
from tutelage.recipes.tokenizers.fit import told_of_fit

__all__ = [
    "TwoLanguages",
    "add_bridge",
    "told_of_fit",
    "translating_teacher",
    "two_languages",
    "with_teacher_prompts",
]
