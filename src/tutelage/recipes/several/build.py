"""From settings to several teachers: live ones loaded, cached ones opened, servers met."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout
from tutelage.recipes.caching import Language, open_cache
from tutelage.recipes.config import (
    CachedTeacherSettings,
    LiveTeacherSettings,
    Recipe,
    RemoteTeacherSettings,
    SeveralTeacherSettings,
    ToyTeacherSettings,
)
from tutelage.recipes.narrator import Narrator
from tutelage.recipes.pair import each_teacher, load_teacher
from tutelage.recipes.remote import open_remote
from tutelage.recipes.rows import Rows
from tutelage.recipes.several.classify import classified
from tutelage.recipes.several.sequential import Shelf, passing_folder
from tutelage.teachers import (
    ByLikelihood,
    ByRow,
    ByShares,
    ByWeight,
    ClassifierRouter,
    LikelihoodRouter,
    LiveTeacher,
    SeveralTeachers,
    Teacher,
    blended_by,
)
from tutelage.text import key_of
from tutelage.training import Ranks

Shares = ByRow | ByWeight | ByShares | ByLikelihood


def build_several(
    recipe: Recipe,
    rows: Rows,
    language: Language,
    *,
    ranks: Ranks,
    narrator: Narrator,
    answers: Path | None = None,
) -> tuple[SeveralTeachers, SeveralTeachers]:
    """Who answers for training rows, and who for held-out ones.

    Args:
        answers: where those of teachers that are loaded one at a time are kept. None: only those
            for held-out rows are, as long as `ranks` is there.

    Raises:
        DataError: a row names no teacher, or a cache lacks a row of its teacher's.
        RemoteError: a server does not answer, or serves another model.
    """
    settings, by = recipe.teacher, shares(recipe, rows, narrator)
    assert isinstance(settings, SeveralTeacherSettings)  # noqa: S101  the caller has looked
    shelf = None
    if settings.sequential:
        if answers is None:
            rows, answers = replace(rows, training=[]), passing_folder(ranks)
        shelf = Shelf(folder=answers, language=language, ranks=ranks, narrator=narrator)
    training: dict[str, Teacher] = {}
    held_out: dict[str, Teacher] = {}
    for number, (name, one) in enumerate(each_teacher(recipe).items(), 1):
        own = own_rows(rows, by, [*settings.teachers], name)
        asked = one if shelf is None else shelf.kept(name, number, one, own)
        with narrator.stage(f"Loading the teacher {name}"):
            training[name], held_out[name] = _member(asked, own, language, ranks.device)
    return SeveralTeachers(training, by=by), SeveralTeachers(held_out, by=by)


def shares(recipe: Recipe, rows: Rows, narrator: Narrator) -> Shares:
    """What each teacher counts in each row, or who decides it.

    Raises:
        DataError: a row names no teacher.
        ConfigError: a router's labels are not the teachers' names.
    """
    settings = recipe.teacher
    assert isinstance(settings, SeveralTeacherSettings)  # noqa: S101  the caller has looked
    match settings.by:
        case "row":
            return ByRow(teacher_of=_names(_every(rows), settings))
        case "router":
            if isinstance(settings.router, ClassifierRouter):
                return classified(settings.router, [*settings.teachers], _every(rows), narrator)
            return ByLikelihood(router=settings.router or LikelihoodRouter())
        case blend:
            return blended_by(list(settings.teachers), settings.weights, blend)


def own_rows(rows: Rows, by: Shares, names: Sequence[str], name: str) -> Rows:
    """The rows that one of the teachers is asked about."""
    if isinstance(by, ByWeight | ByLikelihood):
        return rows
    at = list(names).index(name)

    def is_own(row: Rollout) -> bool:
        key = key_of(row)
        return by.teacher_of[key] == name if isinstance(by, ByRow) else by.shares_of[key][at] > 0

    def own(some: Sequence[Rollout]) -> list[Rollout]:
        return [row for row in some if is_own(row)]

    return replace(rows, training=own(rows.training), held_out=own(rows.held_out))


def _member(
    recipe: Recipe, rows: Rows, language: Language, device: torch.device
) -> tuple[Teacher, Teacher]:
    """One teacher in its own mode: for training rows, and for held-out ones."""
    settings = recipe.teacher
    match settings:
        case CachedTeacherSettings():
            return open_cache(recipe, rows, language, device=device)
        case RemoteTeacherSettings():
            teacher, examiner = open_remote(recipe, language, device=device)
            assert examiner is not None  # noqa: S101  hidden states were asked for
            return teacher, examiner
        case LiveTeacherSettings() | ToyTeacherSettings():
            live = LiveTeacher(
                load_teacher(recipe, device).lm,
                num_real=language.num_real,
                remember_bytes=settings.remember_megabytes * 2**20,
            )
            return live, live
        case _:
            raise AssertionError(settings)


def _every(rows: Rows) -> Sequence[Rollout]:
    return [*rows.training, *rows.held_out]


def _names(rows: Sequence[Rollout], settings: SeveralTeacherSettings) -> dict[str, str]:
    """A row's content to its teacher."""
    found: dict[str, Rollout] = {}
    for row in rows:
        twin = found.setdefault(key_of(row), row)
        mine, other = _name(row, settings), _name(twin, settings)
        if mine != other:
            raise DataError(
                f"{row.prompt.name} has {mine!r} in column {settings.column}, and "
                f"{twin.prompt.name}, which has the same tokens, {other!r}; equal rows must name "
                "one teacher. Leave one of them out, or blend the teachers by mixture."
            )
    return {key: _name(row, settings) for key, row in found.items()}


def _name(row: Rollout, settings: SeveralTeacherSettings) -> str:
    name = row.prompt.row.get(settings.column)
    if name not in settings.teachers:
        raise DataError(
            f"{row.prompt.name} has {name!r} in column {settings.column}; it must be one of "
            f"{', '.join(settings.teachers)}. Correct the row, or teacher.column."
        )
    return str(name)
