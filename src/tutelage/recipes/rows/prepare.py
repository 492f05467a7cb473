"""The rows of a recipe as token ids: read, put through the template, divided, counted."""

from dataclasses import dataclass
from importlib import resources
from typing import final

from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout
from tutelage.core.seeds import seed_for
from tutelage.recipes.config import Recipe, SelfTeacherSettings, baseline
from tutelage.recipes.teaching import show_context, teacher_view
from tutelage.rollouts import (
    DatasetRolloutSettings,
    MixedRolloutSettings,
    RowSettings,
    read_rows,
)
from tutelage.text import Formatter

_SHIPPED = "preset:"


@final
@dataclass(frozen=True, kw_only=True)
class Rows:
    """The data of a run as token ids."""

    training: list[Rollout]
    held_out: list[Rollout]
    notes: list[str]
    """What was dropped or cut, in sentences for the report."""


def prepare_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """All rows as token ids, the held-out ones apart.

    Raises:
        DataError: a row or file that cannot be used, or too few rows.
    """
    settings, evaluation = recipe.rollouts, recipe.evaluation
    everybody = (recipe, *(baseline(recipe, name) for name in recipe.baselines))
    completed = any(needs_completions(one.rollouts) for one in everybody)
    training, notes = _rollouts(settings, tokenizer, settings.num_rows, completed=completed)
    if evaluation.num_rows == 0:
        return Rows(training=training, held_out=[], notes=notes)
    if evaluation.data is not None:
        own = settings.model_copy(update={"data": evaluation.data})
        held_out, more = _rollouts(own, tokenizer, evaluation.num_rows, completed=True)
        notes += [f"held-out rows: {note}" for note in more]
    else:
        if len(training) <= evaluation.num_rows:
            raise DataError(
                f"evaluation.num_rows is {evaluation.num_rows} and {settings.data} has "
                f"{len(training)} usable rows; it must leave some to train on. Lower it, or give "
                "evaluation.data."
            )
        held_out = training[-evaluation.num_rows :]
        training = training[: -evaluation.num_rows]
    bare = next((row for row in held_out if not row.completion_ids), None)
    if bare is not None:
        raise DataError(
            f"{bare.prompt.name} is held out and has no completion; it must have one to be "
            "measured on. Name rows with completions in evaluation.data, or set "
            "evaluation.num_rows: 0."
        )
    seen = {row.prompt.student_ids for row in training}
    num_leaked = sum(row.prompt.student_ids in seen for row in held_out)
    if num_leaked:
        notes.append(f"{num_leaked} held-out prompts also occur among the training rows.")
    return Rows(training=training, held_out=held_out, notes=notes)


def with_views(rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows with what only the teacher of this recipe reads, and what became of them in notes.

    Held-out rows are apart, those of `other` contexts too.

    Raises:
        DataError: a row that cannot be used, or none that can.
    """
    if not isinstance(recipe.teacher, SelfTeacherSettings):
        return rows
    view = teacher_view(
        recipe.teacher,
        tokenizer,
        template=recipe.rollouts.chat_template,
        arguments=recipe.rollouts.template_arguments,
        too_long=recipe.rollouts.too_long,
        seed=seed_for(recipe.seed, "contexts"),
    )
    training, notes = show_context(view, rows.training)
    held_out, more = show_context(view, rows.held_out)
    more = [f"held-out rows: {note}" for note in more]
    return Rows(training=training, held_out=held_out, notes=[*rows.notes, *notes, *more])


def needs_completions(settings: RowSettings) -> bool:
    """Whether the data's own completions are trained on."""
    match settings:
        case DatasetRolloutSettings():
            return True
        case MixedRolloutSettings(otherwise=otherwise):
            return otherwise == "dataset"
        case _:
            return False


def _rollouts(
    settings: RowSettings,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    *,
    completed: bool,
) -> tuple[list[Rollout], list[str]]:
    named = read_rows(
        data_source(settings.data),
        split=settings.split,
        subset=settings.subset,
        columns=settings.columns,
        num_rows=limit,
    )
    formatted = formatter(settings, tokenizer).rollouts(
        ((row, name) for name, row in named), completed=completed
    )
    if not formatted.rows:
        raise DataError(
            f"rollouts.data is {settings.data}, which has no usable row "
            f"({len(formatted.dropped)} dropped); it must have some. Check the file and the limits."
        )
    notes: list[str] = []
    if formatted.dropped:
        notes.append(
            f"{len(formatted.dropped)} rows were dropped, for their prompts have more than "
            f"{settings.max_prompt_tokens} tokens; the first is {formatted.dropped[0]}."
        )
    num_cut = sum(row.truncated for row in formatted.rows)
    if num_cut:
        notes.append(f"{num_cut} completions were cut at {settings.max_completion_tokens} tokens.")
    return formatted.rows, notes


def formatter(settings: RowSettings, tokenizer: PreTrainedTokenizerBase) -> Formatter:
    """What turns the data's rows into token ids."""
    return Formatter(
        tokenizer,
        chat_template=settings.chat_template,
        teacher_template=settings.teacher_template,
        template_kwargs=settings.template_arguments,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_completion_tokens=settings.max_completion_tokens,
        too_long=settings.too_long,
        trained_turns=settings.trained_turns,
    )


def data_source(data: str) -> str:
    """A path or hub name; `preset:FILE` is where the package keeps that file."""
    if not data.startswith(_SHIPPED):
        return data
    folder = resources.files("tutelage.recipes.presets") / "data"
    return str(folder / data.removeprefix(_SHIPPED))
