"""Who says what the student should have said, asked one batch at a time."""

from tutelage.teachers.cache import CachedTeacher
from tutelage.teachers.live import LiveTeacher
from tutelage.teachers.reading import Reader
from tutelage.teachers.self_teacher import AverageTeacher, SelfTeacher, Weights, self_teacher
from tutelage.teachers.teacher import Teacher

__all__ = [
    "AverageTeacher",
    "CachedTeacher",
    "LiveTeacher",
    "Reader",
    "SelfTeacher",
    "Teacher",
    "Weights",
    "self_teacher",
]
