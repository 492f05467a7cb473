"""What contradicts itself where a student teaches itself."""

from collections.abc import Iterator

from tutelage.core.targets import Rest
from tutelage.objectives import Answer, MoveSettings, NoMove, ObjectiveSettings, refusal
from tutelage.recipes.teaching.settings import SelfTeacherSettings
from tutelage.students import (
    FreshStudent,
    PrunedStudent,
    StudentSettings,
    UpcycledStudent,
    lora_of,
)
from tutelage.text import COLUMNS, wording_file


def contradictions_of(settings: SelfTeacherSettings, student: StudentSettings) -> Iterator[str]:
    """One line each: the dotted path, what it is, what it must be, what to do."""
    yield from _of_student(settings, student)
    yield from _of_weights(settings)
    yield from _of_context(settings)


def contradictions_of_answers(
    objective: ObjectiveSettings,
    move: MoveSettings,
    answer: Answer,
    *,
    temperature: float,
    rest: Rest | None,
) -> Iterator[str]:
    """What cannot be learned from answers of this form, wherever they come from."""
    reason = refusal(objective, answer, temperature=temperature, rest=rest)
    if reason is not None:
        yield reason
    if answer != "hidden" and not isinstance(move, NoMove):
        yield (
            f"move.kind is {move.kind}, and {answer} answers are part of the vocabulary; it must "
            "be none, for a target is moved over all entries. Leave the move out, or use hidden "
            "states."
        )


def _of_student(settings: SelfTeacherSettings, student: StudentSettings) -> Iterator[str]:
    if isinstance(student, FreshStudent):
        yield (
            "teacher.kind is self and student.kind is fresh, which knows nothing to teach; the "
            "student must be loaded or pruned. Choose another kind, or another teacher."
        )
    if isinstance(student, PrunedStudent | UpcycledStudent) and student.model is None:
        yield (
            "teacher.kind is self and student.model is null, which is the teacher's; it must name "
            "what to make it from. Name a model in student.model."
        )
    if settings.weights == "initial" and not settings.may_copy and lora_of(student) is None:
        yield (
            "teacher.weights is initial with may_copy: false, and student.lora is null; the "
            "student must have an adapter that can be switched off. Set student.lora (such as "
            "{rank: 16}), or may_copy: true for a frozen copy in memory."
        )


def _of_weights(settings: SelfTeacherSettings) -> Iterator[str]:
    default = SelfTeacherSettings.model_fields["decay"].default
    if settings.weights != "average" and settings.decay != default:
        yield (
            f"teacher.decay is {settings.decay}, and teacher.weights is {settings.weights}, which "
            "nothing averages; it must be left out. Remove it, or set weights: average."
        )
    if settings.weights != "initial" and settings.remember_megabytes:
        yield (
            f"teacher.remember_megabytes is {settings.remember_megabytes}, and teacher.weights is "
            f"{settings.weights}, which move; it must be 0. Remove it, or set weights: initial."
        )
    if settings.weights != "initial" and not settings.may_copy:
        yield (
            f"teacher.may_copy is false, and teacher.weights is {settings.weights}; it must be "
            "left out, for only initial weights ask it. Remove it."
        )


def _of_context(settings: SelfTeacherSettings) -> Iterator[str]:
    if COLUMNS[settings.context] is None and settings.column is not None:
        yield (
            f"teacher.column is {settings.column}, and teacher.context is {settings.context}, "
            "which reads none; it must be left out. Remove it, or choose another context."
        )
    if settings.wording is not None and not wording_file(settings.wording).is_file():
        yield (
            f"teacher.wording is {settings.wording}, which is no file; it must be a Jinja file "
            "or a wording of the package, such as brief. Correct the path, or leave it out for "
            "the package's own long one."
        )
