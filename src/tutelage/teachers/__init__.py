"""Who says what the student should have said, asked one batch at a time."""

from tutelage.teachers.cache import CachedTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.teachers.reading import Reader
from tutelage.teachers.remote import RemoteTeacher, RemoteTeacherSettings
from tutelage.teachers.routed import (
    ByLikelihood,
    ByShares,
    ClassifierRouter,
    LikelihoodRouter,
    shares_by,
)
from tutelage.teachers.self_teacher import AverageTeacher, SelfTeacher, Weights, self_teacher
from tutelage.teachers.several import ByRow, ByWeight, SeveralTeachers, blended_by
from tutelage.teachers.teacher import Teacher
from tutelage.teachers.translating import TranslatingTeacher

__all__ = [
    "AverageTeacher",
    "ByLikelihood",
    "ByRow",
    "ByShares",
    "ByWeight",
    "CachedTeacher",
    "ClassifierRouter",
    "LikelihoodRouter",
    "LiveTeacher",
    "Reader",
    "RemoteTeacher",
    "RemoteTeacherSettings",
    "SelfTeacher",
    "SeveralTeachers",
    "Teacher",
    "TranslatingTeacher",
    "Weights",
    "blended_by",
    "self_teacher",
    "shares_by",
]
