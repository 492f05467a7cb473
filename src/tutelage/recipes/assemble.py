"""The only place that builds objects from settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, final

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tutelage.core.errors import ConfigError, DataError, ModelError
from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.evaluation import EvaluationOptions
from tutelage.models import LoadedModel, load_config, load_model, load_tokenizer
from tutelage.objectives.fused import FusedOptions
from tutelage.recipes.config import DatasetRolloutSettings, LiveTeacherSettings, Recipe
from tutelage.recipes.narrator import Narrator
from tutelage.recipes.toy import byte_tokenizer, toy_config, toy_teacher
from tutelage.rollouts import DatasetRollouts, read_rows
from tutelage.students import (
    FreshStudent,
    LoadedStudent,
    PrunedStudent,
    build_student,
    choose_layers,
    fresh_config,
    layers_by_influence,
)
from tutelage.teachers import LiveTeacher
from tutelage.text import Formatter, collate, cut, match
from tutelage.training import Evaluate, Hook, Ranks, Trainer

_SHIPPED = "preset:"
_NUM_CALIBRATION_ROWS = 64
_NOT_WHO_TEACHES = {"trust_remote_code", "remember_megabytes"}


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
    teacher: LiveTeacher | None
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
    if recipe.teacher is None:
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


def load_teacher(recipe: Recipe, device: torch.device) -> LoadedModel:
    """The teacher's weights, where it is to answer."""
    settings = recipe.teacher
    if settings is None:
        raise ConfigError("teacher is missing; it must be given. Name a model in teacher.model.")
    if not isinstance(settings, LiveTeacherSettings):
        toy = toy_teacher(settings)
        return replace(toy, lm=toy.lm.to(device))
    return load_model(
        settings.model,
        dtype=_teacher_dtype(settings),
        device=device,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )


def _teacher_dtype(settings: LiveTeacherSettings) -> torch.dtype:
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    if settings.model.endswith(".gguf") or settings.model.startswith("package:"):
        return torch.float32
    config = load_config(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    saved = getattr(config, "dtype", None)
    return saved if isinstance(saved, torch.dtype) else torch.float32


def teacher_config(recipe: Recipe) -> PretrainedConfig | None:
    """What the teacher's files say about it; no weight is read."""
    match recipe.teacher:
        case None:
            return None
        case LiveTeacherSettings(model=model, revision=revision, trust_remote_code=trust):
            return load_config(model, revision=revision, trust_remote_code=trust)
        case toy:
            return toy_config(toy)


def teacher_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase | None:
    """The teacher's tokenizer; no weight is read."""
    match recipe.teacher:
        case None:
            return None
        case LiveTeacherSettings(model=model, revision=revision, trust_remote_code=trust):
            return load_tokenizer(model, revision=revision, trust_remote_code=trust)
        case _:
            return byte_tokenizer()


def student_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that the student is, or is cut from; a fresh one's teacher's."""
    student = recipe.student
    if isinstance(student, LoadedStudent):
        return load_tokenizer(
            student.model,
            revision=student.revision,
            trust_remote_code=student.trust_remote_code,
        )
    if isinstance(student, PrunedStudent) and student.model is not None:
        return load_tokenizer(student.model)
    tokenizer = teacher_tokenizer(recipe)
    if tokenizer is None:
        raise _needs_a_teacher(recipe)
    return tokenizer


def student_config(recipe: Recipe) -> PretrainedConfig:
    """The student's shape, worked out from the settings and its origin's files; no weight is read.

    Raises:
        ConfigError: more layers are to be kept than there are, or a change that makes no model.
    """
    student = recipe.student
    if isinstance(student, LoadedStudent):
        return load_config(
            student.model,
            revision=student.revision,
            trust_remote_code=student.trust_remote_code,
        )
    origin = student.model if isinstance(student, PrunedStudent) else student.like
    base = teacher_config(recipe) if origin is None else load_config(origin)
    if base is None:
        raise _needs_a_teacher(recipe)
    if isinstance(student, FreshStudent):
        teacher = teacher_config(recipe)
        words = {} if teacher is None else {"vocab_size": vocabulary_size(teacher)}
        return fresh_config(base, {**words, **student.config})
    shape = base.get_text_config()
    how = "uniform" if student.choose == "influence" else student.choose
    choose_layers(how, keep=student.keep_layers, num_layers=shape.num_hidden_layers)
    return fresh_config(shape, {"num_hidden_layers": student.keep_layers})


def _needs_a_teacher(recipe: Recipe) -> ConfigError:
    return ConfigError(
        f"teacher is missing, and a {recipe.student.kind} student is made from it; it must be "
        "given. Name a model in teacher.model."
    )


def check_vocabularies(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many entries student and teacher share; None without a teacher.

    Raises:
        ModelError: they speak different languages; says what to do.
    """
    teacher_words, config = teacher_tokenizer(recipe), teacher_config(recipe)
    if teacher_words is None or config is None:
        return None
    student = student_config(recipe)
    try:
        found = match(tokenizer, teacher_words, vocabulary_size(student), vocabulary_size(config))
    except ModelError as error:
        raise ModelError(f"student and teacher: {error}") from error
    return found.num_real


def vocabulary_size(config: PretrainedConfig) -> int:
    """Entries of the head."""
    return int(config.get_text_config().vocab_size)


def prepare_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """All rows as token ids, the held-out ones apart.

    Raises:
        DataError: a row or file that cannot be used, or too few rows.
    """
    settings, evaluation = recipe.rollouts, recipe.evaluation
    training, notes = _rollouts(settings, tokenizer, settings.num_rows)
    if evaluation.num_rows == 0:
        return Rows(training=training, held_out=[], notes=notes)
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
    return Rows(training=training, held_out=held_out, notes=notes)


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
    to_choose = isinstance(settings, PrunedStudent) and settings.choose == "influence"
    return build_student(
        settings,
        teacher=work.teacher_model,
        calibration=_calibration(recipe, work) if to_choose else [],
        device=work.device,
        seed=seed_for(recipe.seed, "student"),
    )


def _with_layers(settings: PrunedStudent, recipe: Recipe, work: Work) -> PrunedStudent:
    """The layers by name where influence is to choose them, which takes a forward pass once."""
    if settings.choose != "influence" or work.teacher_model is None:
        return settings
    keep = settings.keep_layers
    if keep not in work.chosen_layers:
        rows = _calibration(recipe, work)
        chosen = layers_by_influence(work.teacher_model.lm, rows, keep=keep)
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
        identity=_identity(recipe, work),
        seed=recipe.seed,
        hooks=hooks,
        ranks=work.ranks,
    )


def _identity(recipe: Recipe, work: Work) -> dict[str, Any]:
    """Who teaches, so that a run does not go on with another teacher unnoticed."""
    if recipe.teacher is None or work.teacher_model is None:
        return {}
    named = recipe.teacher.model_dump(mode="json", exclude=_NOT_WHO_TEACHES)
    named["dtype"] = str(work.teacher_model.lm.dtype).removeprefix("torch.")
    return {f"teacher.{name}": value for name, value in named.items()}
