"""The only place that builds objects from settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import final

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.evaluation import EvaluationOptions
from tutelage.models import LoadedModel
from tutelage.objectives.fused import FusedOptions
from tutelage.recipes.config import (
    DatasetRolloutSettings,
    Recipe,
    SelfTeacherSettings,
)
from tutelage.recipes.narrator import Narrator
from tutelage.recipes.pair import check_vocabularies, load_teacher, student_tokenizer
from tutelage.recipes.teaching import build_teacher, show_context, teacher_view
from tutelage.rollouts import DatasetRollouts, read_rows
from tutelage.students import (
    PrunedStudent,
    block_influence,
    build_student,
    choose_layers,
)
from tutelage.teachers import AverageTeacher, LiveTeacher, Teacher
from tutelage.text import Formatter, collate, cut
from tutelage.training import Evaluate, Hook, Ranks, Trainer

_SHIPPED = "preset:"
_NUM_CALIBRATION_ROWS = 64


@final
@dataclass(frozen=True, kw_only=True)
class Rows:
    """The data of a run as token ids."""

    training: list[Rollout]
    held_out: list[Rollout]
    notes: list[str]
    """What was dropped or cut, in sentences for the report."""


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run and its baselines share: the same rows, and the same teacher for all."""

    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    teacher_model: LoadedModel | None
    teacher: Teacher | None
    """None without one, and until `taught` where each student is its own."""
    ranks: Ranks
    chosen_layers: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    """Layers that influence chose, by how many: baselines and seeds begin with the same ones."""

    @property
    def device(self) -> torch.device:
        """Where models live."""
        return self.ranks.device


def assemble(recipe: Recipe, folder: Path | None, narrator: Narrator) -> Work:
    """Read the rows, then load the teacher; the cheap and likely mistakes come first."""
    ranks = Ranks(track_with=recipe.training.track_with, folder=folder)
    with narrator.stage("Reading the rows"):
        tokenizer = student_tokenizer(recipe)
        check_vocabularies(recipe, tokenizer)
        rows = prepare_rows(recipe, tokenizer)
    for note in rows.notes:
        narrator.say(f"note: {note}")
    if recipe.teacher is None or isinstance(recipe.teacher, SelfTeacherSettings):
        return Work(tokenizer=tokenizer, rows=rows, teacher_model=None, teacher=None, ranks=ranks)
    with narrator.stage("Loading the teacher"):
        model = load_teacher(recipe, ranks.device)
    teacher = LiveTeacher(
        model.lm,
        num_real=check_vocabularies(recipe, tokenizer),
        remember_bytes=recipe.teacher.remember_megabytes * 2**20,
    )
    return Work(tokenizer=tokenizer, rows=rows, teacher_model=model, teacher=teacher, ranks=ranks)


@final
class SharedWork:
    """Keeps the last work, so that runs of one pair and one data set load and ask it once."""

    def __init__(self, narrator: Narrator) -> None:
        self.narrator = narrator
        self._kept: tuple[str, Work] | None = None

    def for_recipe(self, recipe: Recipe) -> Work:
        """The work of a recipe: the last one where all that it is made from is the same."""
        parts = recipe.model_dump(
            mode="json", include={"student", "teacher", "rollouts", "evaluation"}
        )
        key = json.dumps([parts, recipe.training.track_with], sort_keys=True)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            self._kept = (key, assemble(recipe, None, self.narrator))
        return self._kept[1]


def prepare_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """All rows as token ids, the held-out ones apart.

    Raises:
        DataError: a row or file that cannot be used, or too few rows.
    """
    settings, evaluation = recipe.rollouts, recipe.evaluation
    training, notes = _rollouts(settings, tokenizer, settings.num_rows)
    if evaluation.num_rows == 0:
        return _with_views(Rows(training=training, held_out=[], notes=notes), recipe, tokenizer)
    if evaluation.data is not None:
        own = settings.model_copy(update={"data": evaluation.data})
        held_out, more = _rollouts(own, tokenizer, evaluation.num_rows)
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
    seen = {row.prompt.student_ids for row in training}
    num_leaked = sum(row.prompt.student_ids in seen for row in held_out)
    if num_leaked:
        notes.append(f"{num_leaked} held-out prompts also occur among the training rows.")
    return _with_views(Rows(training=training, held_out=held_out, notes=notes), recipe, tokenizer)


def _with_views(rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows with what only the teacher reads; held-out rows are apart, `other` ones too."""
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


def _rollouts(
    settings: DatasetRolloutSettings, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> tuple[list[Rollout], list[str]]:
    named = read_rows(
        data_source(settings.data),
        split=settings.split,
        subset=settings.subset,
        columns=settings.columns,
        num_rows=limit,
    )
    formatted = formatter(settings, tokenizer).rollouts((row, name) for name, row in named)
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


def formatter(settings: DatasetRolloutSettings, tokenizer: PreTrainedTokenizerBase) -> Formatter:
    """What turns the data's rows into token ids."""
    return Formatter(
        tokenizer,
        chat_template=settings.chat_template,
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


def batches(rollouts: Sequence[Rollout], recipe: Recipe, work: Work) -> list[TokenBatch]:
    """Held-out rows in forwards of a bounded size."""
    pieces = cut(rollouts, max_tokens=recipe.evaluation.max_tokens)
    return [collate(piece, device=work.device) for piece in pieces]


def evaluation_options(recipe: Recipe) -> EvaluationOptions:
    """The student is measured in the precision it trains in."""
    half = torch.bfloat16 if recipe.training.precision == "bf16" else None
    return EvaluationOptions(dtype=half, fused=FusedOptions(matmul_dtype=half))


def make_student(recipe: Recipe, work: Work) -> LoadedModel:
    """The student before its first step: the same every time for the same recipe."""
    settings = recipe.student
    if isinstance(settings, PrunedStudent) and settings.model is None:
        settings = _with_layers(settings, recipe, work)
    return build_student(
        settings,
        teacher=work.teacher_model,
        calibration=[] if settings.kind != "pruned" else _calibration(recipe, work),
        device=work.device,
        seed=seed_for(recipe.seed, "student"),
    )


def taught(recipe: Recipe, work: Work, student: LoadedModel) -> Work:
    """The work with this student as its own teacher, where the recipe says so."""
    if not isinstance(recipe.teacher, SelfTeacherSettings):
        return work
    teacher = build_teacher(
        recipe.teacher,
        student.lm,
        num_real=check_vocabularies(recipe, work.tokenizer),
        dtype=evaluation_options(recipe).dtype,
    )
    return replace(work, teacher=teacher)


def _with_layers(settings: PrunedStudent, recipe: Recipe, work: Work) -> PrunedStudent:
    """The layers by name where influence is to choose them, which takes a forward pass once."""
    if settings.choose != "influence" or work.teacher_model is None:
        return settings
    keep = settings.keep_layers
    if keep not in work.chosen_layers:
        lm = work.teacher_model.lm
        influence = block_influence(lm, _calibration(recipe, work))
        chosen = choose_layers(
            "influence", keep=keep, num_layers=len(influence), influence=influence
        )
        work.chosen_layers[keep] = tuple(chosen)
    return settings.model_copy(update={"choose": work.chosen_layers[keep]})


def _calibration(recipe: Recipe, work: Work) -> list[TokenBatch]:
    return batches(work.rows.training[:_NUM_CALIBRATION_ROWS], recipe, work)


def make_trainer(
    recipe: Recipe,
    work: Work,
    student: LoadedModel,
    *,
    output: Path,
    evaluate: Evaluate | None,
    hooks: Sequence[Hook],
) -> Trainer:
    """Everything one optimiser step needs, from the recipe's settings."""
    rollouts = DatasetRollouts(
        work.rows.training,
        seed=seed_for(recipe.seed, "rollouts"),
        shuffle=recipe.rollouts.shuffle,
        rank=work.ranks.rank,
        num_ranks=work.ranks.num_ranks,
    )
    return Trainer(
        student=student.lm,
        teacher=work.teacher,
        objective=recipe.objective,
        rollouts=rollouts,
        settings=recipe.training,
        move=recipe.move,
        evaluate=evaluate,
        output=output,
        seed=recipe.seed,
        hooks=hooks,
        clocks={"teacher": work.teacher} if isinstance(work.teacher, AverageTeacher) else {},
        ranks=work.ranks,
    )
