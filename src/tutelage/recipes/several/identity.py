"""Whose answers a run with several teachers must not go on without."""

from typing import Any

from tutelage.recipes.caching import who_teaches
from tutelage.recipes.config import (
    CachedTeacherSettings,
    RemoteTeacherSettings,
    SeveralTeacherSettings,
)
from tutelage.recipes.remote import who_teaches_there
from tutelage.teachers import RemoteTeacher, SeveralTeachers
from tutelage.training.state_tree import dotted

NOT_WHO_TEACHES = {"trust_remote_code", "remember_megabytes"}


def who_teach(settings: SeveralTeacherSettings, teachers: SeveralTeachers) -> dict[str, Any]:
    """By dotted name; where a cache or a server is may change, whose answers it has may not."""
    named = settings.model_dump(mode="json", exclude={"teachers", "sequential"})
    for name, one in settings.teachers.items():
        match one:
            case CachedTeacherSettings():
                told = who_teaches(one)
            case RemoteTeacherSettings():
                member = teachers.members[name]
                assert isinstance(member, RemoteTeacher)  # noqa: S101  it was built as one
                told = who_teaches_there(one, member)
            case _:
                told = one.model_dump(mode="json", exclude=NOT_WHO_TEACHES)
        named |= dotted(f"teachers.{name}", told)
    return named
