"""What contradicts itself where several teachers teach."""

from collections.abc import Iterator
from pathlib import Path

from tutelage.core.errors import DataError
from tutelage.recipes.config import (
    CachedTeacherSettings,
    Recipe,
    RemoteTeacherSettings,
    SeveralTeacherSettings,
)
from tutelage.recipes.remote import of_form
from tutelage.recipes.rows import writes
from tutelage.recipes.several.sequential import is_loaded
from tutelage.students import FreshStudent, PrunedStudent
from tutelage.teachers import ClassifierRouter
from tutelage.teachers.cache import load_identity


def contradictions_among(recipe: Recipe) -> Iterator[str]:
    """One line each: the dotted path, what it is, what it must be, what to do."""
    settings = recipe.teacher
    if not isinstance(settings, SeveralTeacherSettings):
        return
    yield from _of_shares(settings)
    yield from _of_caches(settings)
    yield from _of_servers(settings)
    yield from _of_sequence(settings)
    yield from _of_router(settings)
    who, unseen = writes(recipe.rollouts), _knows_only_the_data(settings)
    if who and (unseen or "teacher" in who):
        why = "several teachers write nothing together" if "teacher" in who else unseen
        yield (
            f"rollouts.kind is {recipe.rollouts.kind}, and {why}; it must be dataset. Change it, "
            "or use live or remote teachers by mixture, product or likelihood and let the student "
            "write."
        )
    if recipe.evaluation.written_rows and unseen:
        yield (
            f"evaluation.written_rows is {recipe.evaluation.written_rows}, and not every teacher "
            f"can read what will be written ({unseen}); it must be 0. Leave it out."
        )
    student = recipe.student
    if isinstance(student, FreshStudent) or (
        isinstance(student, PrunedStudent) and student.model is None
    ):
        yield (
            f"student.kind is {student.kind} without a model of its own, and teacher.kind is "
            "several; it must be made from one model. Name it in student.model."
        )


def _knows_only_the_data(settings: SeveralTeacherSettings) -> str:
    """Why nobody may be asked about what models write while the run goes on; empty: they may."""
    cached = [n for n, t in settings.teachers.items() if isinstance(t, CachedTeacherSettings)]
    if cached:
        return f"{cached[0]} is cached"
    if settings.sequential:
        return "teacher.sequential is true, which asks about rows that are known beforehand"
    if isinstance(settings.router, ClassifierRouter):
        return "teacher.router is a classifier, which is asked before the first step"
    return "teacher.by is row" if settings.by == "row" else ""


def _of_router(settings: SeveralTeacherSettings) -> Iterator[str]:
    router, by, most = settings.router, settings.by, len(settings.teachers)
    if by == "router" and router is None:
        yield (
            "teacher.by is router, and teacher.router is null; it must be given. Add router: "
            "{kind: likelihood}, or {kind: classifier, model: FOLDER}."
        )
    if router is None:
        return
    if by != "router":
        yield (
            f"teacher.router is given, and teacher.by is {by}; it must be null. Remove it, or set "
            "by: router."
        )
    if router.top is not None and router.top > most:
        yield (
            f"teacher.router.top is {router.top}; it must be no more than the {most} in "
            "teacher.teachers. Lower it, or leave it out for all."
        )


def _of_sequence(settings: SeveralTeacherSettings) -> Iterator[str]:
    if not settings.sequential:
        return
    loaded = {name: one for name, one in settings.teachers.items() if is_loaded(one)}
    if not loaded:
        yield (
            "teacher.sequential is true, and none of teacher.teachers is live; it must be false "
            "where nothing is loaded. Leave it out."
        )
    for name, one in loaded.items():
        most = one.remember_megabytes
        if most != type(one).model_fields["remember_megabytes"].default:
            yield (
                f"teacher.teachers.{name}.remember_megabytes is {most}, and teacher.sequential is "
                "true, where answers are on the disk; it must be left out. Remove it."
            )


def _of_shares(settings: SeveralTeacherSettings) -> Iterator[str]:
    names, given = set(settings.teachers), settings.weights
    if settings.by in ("row", "router") and given is not None:
        yield (
            f"teacher.weights are given, and teacher.by is {settings.by}; they must be left out. "
            "Remove them, or blend the teachers by mixture or product."
        )
    elif given is not None and set(given) != names:
        odd = min(names ^ set(given))
        yield (
            f"teacher.weights name {', '.join(sorted(given))}; they must name each of "
            f"{', '.join(sorted(names))} and no other. Add or remove {odd}."
        )
    default = SeveralTeacherSettings.model_fields["column"].default
    if settings.by != "row" and settings.column != default:
        yield (
            f"teacher.column is {settings.column}, and teacher.by is {settings.by}, which reads "
            "none; it must be left out. Remove it, or set by: row."
        )


def _of_caches(settings: SeveralTeacherSettings) -> Iterator[str]:
    for name, one in settings.teachers.items():
        if not isinstance(one, CachedTeacherSettings):
            continue
        where = f"teacher.teachers.{name}"
        try:
            answer = load_identity(Path(one.folder)).answers.answer
        except DataError as error:
            yield f"{where}.folder is {one.folder}: {error}"
            continue
        if answer != "hidden":
            yield (
                f"{where} holds {answer} answers; it must hold hidden states, for several "
                "teachers are blended over all entries. Cache it with --answer hidden."
            )
        if one.rest is not None:
            yield f"{where}.rest is {one.rest}; it must be left out for hidden states. Remove it."


def _of_servers(settings: SeveralTeacherSettings) -> Iterator[str]:
    for name, one in settings.teachers.items():
        if not isinstance(one, RemoteTeacherSettings):
            continue
        where = f"teacher.teachers.{name}"
        if one.api == "vllm" or one.answer != "hidden":
            whose = ", from vLLM" if one.api == "vllm" else ""
            yield (
                f"{where} answers with {one.answer}{whose}; it must answer with hidden states, for "
                "several teachers are blended over all entries. Serve it with `tutelage serve`, "
                "and leave answer and api out."
            )
        else:
            yield from of_form(one, where)


def told_of_several(settings: SeveralTeacherSettings) -> str:
    """Who they are, in words."""
    shares = settings.weights or {}
    named = [
        f"{name} ({one.kind}{f', weight {shares[name]:g}' if name in shares else ''})"
        for name, one in settings.teachers.items()
    ]
    how = ", the live ones loaded one at a time" if settings.sequential else ""
    by = settings.by if settings.router is None else f"{settings.router.kind} router"
    return f"several, by {by}{how}: {', '.join(named)}"
