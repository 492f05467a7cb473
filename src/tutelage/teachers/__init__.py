"""Who says what the student should have said, asked one batch at a time."""

from tutelage.teachers.live import LiveTeacher
from tutelage.teachers.teacher import Teacher

__all__ = ["LiveTeacher", "Teacher"]
