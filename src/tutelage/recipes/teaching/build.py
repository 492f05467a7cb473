"""From settings to the teacher's view of the rows, and to the student as its own teacher."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout
from tutelage.models import CausalLM
from tutelage.recipes.teaching.settings import SelfTeacherSettings
from tutelage.students import LoraSettings
from tutelage.teachers import AverageTeacher, LiveTeacher, Reader, SelfTeacher, self_teacher
from tutelage.text import TeacherView, wording_file

_FLOAT32 = 4


def teacher_view(
    settings: SelfTeacherSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None,
    arguments: Mapping[str, Any],
    too_long: Literal["error", "drop"],
    seed: int,
) -> TeacherView:
    """How the teacher reads a prompt.

    Args:
        template: the student's chat template, where the teacher has none of its own.
        arguments: the student's template arguments, where the teacher has none of its own.
    """
    own = settings.template_arguments
    return TeacherView(
        tokenizer=tokenizer,
        context=settings.context,
        column=settings.column,
        wording=None if settings.wording is None else wording_file(settings.wording),
        chat_template=settings.chat_template or template,
        template_kwargs=arguments if own is None else own,
        max_prompt_tokens=settings.max_prompt_tokens,
        too_long=too_long,
        seed=seed,
    )


def show_context(view: TeacherView, rows: Sequence[Rollout]) -> tuple[list[Rollout], list[str]]:
    """The rows with the teacher's view of each, and what was cut or dropped, in sentences.

    Raises:
        DataError: a row that cannot be used, or none that can.
    """
    shown = view.rollouts(rows)
    notes: list[str] = []
    if shown.cut:
        notes.append(
            f"{len(shown.cut)} teacher's contexts were cut in the middle to keep to "
            f"{view.max_prompt_tokens} tokens; the first is {shown.cut[0]}."
        )
    if shown.dropped:
        notes.append(
            f"{len(shown.dropped)} rows were dropped, for their teacher's prompts have more than "
            f"{view.max_prompt_tokens} tokens without any context; the first is "
            f"{shown.dropped[0]}."
        )
    if rows and not shown.rows:
        raise DataError(
            f"teacher.max_prompt_tokens is {view.max_prompt_tokens}, which no teacher's prompt "
            "keeps to; some rows must. Raise it."
        )
    return shown.rows, notes


def build_teacher(
    settings: SelfTeacherSettings,
    student: CausalLM,
    *,
    num_real: int | None,
    dtype: torch.dtype | None,
) -> SelfTeacher | AverageTeacher | LiveTeacher:
    """The student's teacher; the student must still be what it was before its first step.

    Args:
        dtype: what the student is trained in, so that the two differ by nothing else.
    """
    reader = Reader(
        num_real=num_real, dtype=dtype, remember_bytes=settings.remember_megabytes * 2**20
    )
    return self_teacher(student, weights=settings.weights, decay=settings.decay, reader=reader)


def kept_weights(
    settings: SelfTeacherSettings, lora: LoraSettings | None, *, num_weights: int, num_bytes: int
) -> tuple[str, int]:
    """What the teacher keeps of the student's weights, in words, and about how many bytes.

    Args:
        num_weights: of the student, without an adapter.
        num_bytes: of one weight.
    """
    match settings.weights, lora:
        case "live", _:
            return "the student as it is", 0
        case "initial", None:
            return "a frozen copy of the student", num_weights * num_bytes
        case "initial", _:
            return "the student with its adapter off", 0
        case _:
            # A copy to answer with, which is the average itself where it is float32.
            apart = 0 if num_bytes == _FLOAT32 else num_bytes
            return "a running average of the student", num_weights * (_FLOAT32 + apart)
