"""The student as its own teacher, in recipes: settings, checks, the rows' second view, assembly."""

from tutelage.recipes.teaching.build import build_teacher, kept_weights, show_context, teacher_view
from tutelage.recipes.teaching.check import contradictions_of, contradictions_of_answers
from tutelage.recipes.teaching.settings import CachedTeacherSettings, SelfTeacherSettings

__all__ = [
    "CachedTeacherSettings",
    "SelfTeacherSettings",
    "build_teacher",
    "contradictions_of",
    "contradictions_of_answers",
    "kept_weights",
    "show_context",
    "teacher_view",
]
