"""The two models of a recipe: who they are, and whether they speak the same language."""

from tutelage.recipes.pair.who import (
    check_vocabularies,
    crosses,
    each_teacher,
    load_teacher,
    student_config,
    student_tokenizer,
    taught_live,
    teacher_config,
    teacher_tokenizer,
    vocabulary_size,
)

__all__ = [
    "check_vocabularies",
    "crosses",
    "each_teacher",
    "load_teacher",
    "student_config",
    "student_tokenizer",
    "taught_live",
    "teacher_config",
    "teacher_tokenizer",
    "vocabulary_size",
]
