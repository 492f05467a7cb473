"""Who teaches whom: the two models of a recipe by their files, and the teacher's weights."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tutelage.core.errors import ConfigError, ModelError
from tutelage.models import LoadedModel, load_config, load_model, load_tokenizer
from tutelage.objectives.groupwise import can_cross
from tutelage.recipes.config import (
    CachedTeacherSettings,
    LiveTeacherSettings,
    Recipe,
    RemoteTeacherSettings,
    SelfTeacherSettings,
    SeveralTeacherSettings,
    varied,
)
from tutelage.recipes.pair.languages import own_entries
from tutelage.recipes.toy import byte_tokenizer, toy_config, toy_teacher
from tutelage.students import (
    FreshStudent,
    LoadedStudent,
    PrunedStudent,
    ReroutedStudent,
    UpcycledStudent,
    check_width,
    choose_layers,
    fresh_config,
    upcycled_config,
)
from tutelage.teachers.cache import WORDS, load_identity
from tutelage.text import match


def load_teacher(recipe: Recipe, device: torch.device) -> LoadedModel:
    """The teacher's weights, where it is to answer."""
    settings = recipe.teacher
    if settings is None:
        raise ConfigError("teacher is missing; it must be given. Name a model in teacher.model.")
    if isinstance(settings, SeveralTeacherSettings):
        raise ConfigError("teacher.kind is several; it must be one to be loaded. Name one of them.")
    if isinstance(settings, SelfTeacherSettings):
        raise ConfigError("teacher.kind is self; it must be of its own to be loaded. Name a model.")
    if isinstance(settings, CachedTeacherSettings | RemoteTeacherSettings):
        return load_teacher(taught_live(recipe), device)
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


def taught_live(recipe: Recipe) -> Recipe:
    """The recipe with the teacher itself in place of the cache, or the server, of its answers."""
    if isinstance(recipe.teacher, RemoteTeacherSettings):
        names = {"model", "revision", "trust_remote_code"}
        return varied(
            recipe, {"teacher": {"kind": "live", **recipe.teacher.model_dump(include=names)}}
        )
    if not isinstance(recipe.teacher, CachedTeacherSettings):
        return recipe
    return varied(recipe, {"teacher": load_identity(Path(recipe.teacher.folder)).teacher})


def each_teacher(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe with each of its several teachers alone, by name."""
    assert isinstance(recipe.teacher, SeveralTeacherSettings)  # noqa: S101  the caller has looked
    return {
        name: recipe.model_copy(update={"teacher": one})
        for name, one in recipe.teacher.teachers.items()
    }


def words_of(settings: CachedTeacherSettings) -> str:
    """The folder that keeps the tokenizer and the configuration of a cached teacher."""
    return str(Path(settings.folder) / WORDS)


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
        case (
            LiveTeacherSettings(model=model, revision=revision, trust_remote_code=trust)
            | RemoteTeacherSettings(model=model, revision=revision, trust_remote_code=trust)
        ):
            return load_config(model, revision=revision, trust_remote_code=trust)
        case SelfTeacherSettings():
            return None if _made_from_teacher(recipe) else student_config(recipe)
        case CachedTeacherSettings():
            return load_config(words_of(recipe.teacher))
        case SeveralTeacherSettings():
            return teacher_config(next(iter(each_teacher(recipe).values())))
        case toy:
            return toy_config(toy)


def teacher_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase | None:
    """The teacher's tokenizer; no weight is read."""
    match recipe.teacher:
        case None:
            return None
        case (
            LiveTeacherSettings(model=model, revision=revision, trust_remote_code=trust)
            | RemoteTeacherSettings(model=model, revision=revision, trust_remote_code=trust)
        ):
            return load_tokenizer(model, revision=revision, trust_remote_code=trust)
        case SelfTeacherSettings():
            return None if _made_from_teacher(recipe) else student_tokenizer(recipe)
        case CachedTeacherSettings():
            return load_tokenizer(words_of(recipe.teacher))
        case SeveralTeacherSettings():
            return teacher_tokenizer(next(iter(each_teacher(recipe).values())))
        case _:
            return byte_tokenizer()


def _made_from_teacher(recipe: Recipe) -> bool:
    return not isinstance(recipe.student, LoadedStudent) and (
        isinstance(recipe.student, FreshStudent) or recipe.student.model is None
    )


def student_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that the student is, or is cut from; a fresh one's teacher's."""
    student = recipe.student
    if isinstance(student, LoadedStudent):
        return load_tokenizer(
            student.model,
            revision=student.revision,
            trust_remote_code=student.trust_remote_code,
        )
    if isinstance(student, ReroutedStudent):
        return load_tokenizer(student.model, revision=student.revision)
    if isinstance(student, PrunedStudent | UpcycledStudent) and student.model is not None:
        return load_tokenizer(student.model)
    tokenizer = teacher_tokenizer(recipe)
    if tokenizer is None:
        raise _needs_a_teacher(recipe)
    return tokenizer


def student_config(recipe: Recipe) -> PretrainedConfig:
    """The student's shape, worked out from the settings and its origin's files; no weight is read.

    Raises:
        ConfigError: more layers are to be kept than there are, experts that cannot be had, or a
            change that makes no model.
    """
    student = recipe.student
    match student:
        case LoadedStudent():
            return load_config(
                student.model,
                revision=student.revision,
                trust_remote_code=student.trust_remote_code,
            )
        case ReroutedStudent():
            if recipe.teacher is None or isinstance(recipe.teacher, SelfTeacherSettings):
                raise _needs_a_teacher(recipe)
            return load_config(student.model, revision=student.revision)
        case FreshStudent():
            base = _origin(recipe, student.like)
            teacher = teacher_config(recipe)
            words = {} if teacher is None else {"vocab_size": vocabulary_size(teacher)}
            return fresh_config(base, {**words, **student.config})
        case UpcycledStudent():
            return upcycled_config(_origin(recipe, student.model), student)
        case PrunedStudent():
            return _pruned_config(_origin(recipe, student.model).get_text_config(), student)


def _origin(recipe: Recipe, model: str | None) -> PretrainedConfig:
    """The config that a student's is made from: this model's, or the teacher's."""
    base = teacher_config(recipe) if model is None else load_config(model)
    if base is None:
        raise _needs_a_teacher(recipe)
    return base


def _pruned_config(base: PretrainedConfig, student: PrunedStudent) -> PretrainedConfig:
    changes: dict[str, int] = {}
    if student.keep_layers is not None:
        how = "uniform" if student.choose == "influence" else student.choose
        choose_layers(how, keep=student.keep_layers, num_layers=base.num_hidden_layers)
        changes["num_hidden_layers"] = student.keep_layers
    if student.keep_neurons is not None:
        check_width(student.keep_neurons, num_neurons=base.intermediate_size)
        changes["intermediate_size"] = student.keep_neurons
    return fresh_config(base, changes)


def _needs_a_teacher(recipe: Recipe) -> ConfigError:
    return ConfigError(
        f"teacher is missing, and a {recipe.student.kind} student is made from it; it must be "
        "given. Name a model in teacher.model."
    )


def check_vocabularies(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many entries student and teacher share; None without a teacher.

    Where their tokenizers differ and the objective bridges them, the student's own.

    Raises:
        ModelError: they speak different languages; says what to do.
        ConfigError: they do, and a setting does not go with that.
    """
    if isinstance(recipe.teacher, SeveralTeacherSettings):
        # Asked of all of them together first: one by one they might do with another tokenizer.
        for one in each_teacher(recipe).values():
            words = teacher_tokenizer(one)
            if words is not None:
                own_entries(recipe, tokenizer, words)
        found = [check_vocabularies(one, tokenizer) for one in each_teacher(recipe).values()]
        return min(shared for shared in found if shared is not None)
    teacher_words, config = teacher_tokenizer(recipe), teacher_config(recipe)
    if teacher_words is None or config is None:
        return None
    own = own_entries(recipe, tokenizer, teacher_words)
    if own is not None:
        return own
    student = student_config(recipe)
    try:
        found = match(tokenizer, teacher_words, vocabulary_size(student), vocabulary_size(config))
    except ModelError as error:
        raise ModelError(f"student and teacher: {error}") from error
    return found.num_real


def crosses(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the teacher has another tokenizer than the student, and the recipe does with that."""
    if not can_cross(recipe.objective):
        return False
    words = teacher_tokenizer(recipe)
    return words is not None and own_entries(recipe, tokenizer, words) is not None


def vocabulary_size(config: PretrainedConfig) -> int:
    """Entries of the head."""
    return int(config.get_text_config().vocab_size)
