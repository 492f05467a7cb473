"""A teacher with another tokenizer in recipes: its prompts, its assembly, what of it fits."""

from tutelage.recipes.tokenizers.build import (
    TwoLanguages,
    translating_teacher,
    two_languages,
    with_teacher_prompts,
)

__all__ = [
    "TwoLanguages",
    "translating_teacher",
    "two_languages",
    "with_teacher_prompts",
]
