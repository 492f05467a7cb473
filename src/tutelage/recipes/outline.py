"""What a recipe comes to before anything is loaded: sizes, steps, memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from transformers import PretrainedConfig

from tutelage.models import ParameterCount, num_lora_parameters, parameter_count
from tutelage.recipes.caching import head_bytes, told_of
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import (
    CachedTeacherSettings,
    LiveTeacherSettings,
    Recipe,
    RemoteTeacherSettings,
    SeveralTeacherSettings,
    ToyTeacherSettings,
)
from tutelage.recipes.pair import each_teacher, student_config, teacher_config, vocabulary_size
from tutelage.recipes.remote import told_of_remote
from tutelage.recipes.rows import described
from tutelage.recipes.several import told_of_several
from tutelage.recipes.teaching import SelfTeacherSettings, kept_weights
from tutelage.rollouts import WritingSettings
from tutelage.students import lora_of

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}
_MEGABYTE = 2**20
# Weights, gradients, and AdamW's two running means, which have the type of the weights.
_COPIES_IN_TRAINING = 4
# What a decoder layer keeps of each token for its backward pass, in widths of the model: inputs,
# norms, queries, keys, values, attention's output, and the two or three inner MLP activations.
_KEPT_WIDTHS = 16


@final
@dataclass(frozen=True, kw_only=True)
class Outline:
    """Counts and an estimate; nothing here has been measured."""

    student: ParameterCount
    teacher: ParameterCount | None
    """None without one, and where the student teaches itself."""
    self_taught: str | None
    """Which of its weights a student that teaches itself learns from, or who answers for a teacher
    that is not loaded."""
    num_adapter: int | None
    """Numbers in the adapter, where that is all that is trained."""
    tokens_per_micro_batch: int
    steps: int
    rows_per_step: int
    rollouts: str
    """Who completes the rows, and how."""
    memory_megabytes: dict[str, int | float]
    """What for, and about how much."""
    warnings: list[str]
    """Contradictions that `train` would refuse."""

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and text, for a table."""
        yield "student", _size(self.student)
        if self.num_adapter is not None:
            yield "trained", f"{self.num_adapter:,} parameters in an adapter, nothing else"
        teacher = "none" if self.teacher is None else _size(self.teacher)
        yield "teacher", self.self_taught or teacher
        yield "steps", f"{self.steps} of {self.rows_per_step} rows"
        yield "rollouts", self.rollouts
        yield "forward", f"up to {self.tokens_per_micro_batch:,} tokens at once"
        for name, megabytes in self.memory_megabytes.items():
            yield f"memory: {name}", f"about {_memory(megabytes)}"
        yield "memory", f"about {_memory(sum(self.memory_megabytes.values()))} in all"


def outline_of(recipe: Recipe) -> Outline:
    """Sizes from the models' configurations alone.

    Raises:
        ModelError: a configuration cannot be read.
        ConfigError: the student's shape is impossible.
    """
    shape = student_config(recipe)
    student = parameter_count(shape)
    own = recipe.teacher if isinstance(recipe.teacher, SelfTeacherSettings) else None
    of_teacher = None if own else teacher_config(recipe)
    teacher = None if of_teacher is None else parameter_count(of_teacher)
    lora, num_adapter = lora_of(recipe.student), None
    size = student.total * _BYTES[recipe.student.dtype]
    trained = size * _COPIES_IN_TRAINING
    if lora is not None:
        num_adapter = num_lora_parameters(shape, rank=lora.rank, targets=lora.targets)
        trained = size + num_adapter * _BYTES["float32"] * _COPIES_IN_TRAINING
    training = recipe.training
    num_tokens = training.micro_batch_tokens
    width = int(shape.get_text_config().hidden_size)
    activation = 2 if training.precision == "bf16" else 4
    kept_layers = 1 if training.gradient_checkpointing else student.num_layers
    memory = {
        "student, gradients, AdamW": trained,
        "activations": num_tokens * width * kept_layers * _KEPT_WIDTHS * activation,
        "loss": training.loss_megabytes * _MEGABYTE + 4 * vocabulary_size(shape) * width,
    }
    self_taught = None
    if own is not None:
        words, kept = kept_weights(
            own, lora, num_weights=student.total, num_bytes=_BYTES[recipe.student.dtype]
        )
        self_taught = f"{words}, shown {_context(own)}"
        memory["teacher"] = kept
        memory["answers remembered, at most"] = own.remember_megabytes * _MEGABYTE
    if own is None:
        self_taught, of_it = _of_teacher(recipe, of_teacher)
        memory |= of_it
    if isinstance(recipe.rollouts, WritingSettings):
        memory["keys and values while writing"] = _kept_while_writing(recipe, shape)
        # The slots lay the weights out anew, in the precision they compute in.
        if recipe.rollouts.engine in ("auto", "slots"):
            memory["weights while writing"] = student.total * activation
    return Outline(
        student=student,
        teacher=teacher,
        self_taught=self_taught,
        num_adapter=num_adapter,
        tokens_per_micro_batch=num_tokens,
        steps=training.num_steps,
        rows_per_step=training.rows_per_step,
        rollouts=described(recipe.rollouts),
        memory_megabytes={name: size / _MEGABYTE for name, size in memory.items()},
        warnings=list(contradictions(recipe)),
    )


def _of_teacher(
    recipe: Recipe, config: PretrainedConfig | None
) -> tuple[str | None, dict[str, int]]:
    """Who answers where the teacher is not loaded, and the bytes that it takes here."""
    match recipe.teacher:
        case CachedTeacherSettings():
            return told_of(recipe.teacher), {"teacher's head": head_bytes(recipe.teacher)}
        case SeveralTeacherSettings():
            return told_of_several(recipe.teacher), _of_several(recipe)
        case RemoteTeacherSettings(api=api):
            memory = {"answers remembered, at most": recipe.teacher.remember_megabytes * _MEGABYTE}
            if api == "tutelage" and config is not None:
                # Held-out rows are measured by hidden states, whatever is learned from.
                memory["teacher's head, at most"] = _head(config)
            return told_of_remote(recipe.teacher), memory
        case LiveTeacherSettings(dtype=dtype, remember_megabytes=most):
            total = 0 if config is None else parameter_count(config).total
            return None, _of_loaded(total * _BYTES[dtype], most)
        case ToyTeacherSettings(remember_megabytes=most):
            total = 0 if config is None else parameter_count(config).total
            return None, _of_loaded(total * _BYTES["float32"], most)
        case _:
            return None, {}


def _of_loaded(num_bytes: int, remember_megabytes: int) -> dict[str, int]:
    return {
        "teacher": num_bytes,
        "answers remembered, at most": remember_megabytes * _MEGABYTE,
    }


def _head(config: PretrainedConfig) -> int:
    """Bytes of a head that comes in no more than float32."""
    width = int(config.get_text_config().hidden_size)
    return vocabulary_size(config) * width * _BYTES["float32"]


def _of_several(recipe: Recipe) -> dict[str, int]:
    """Bytes of each teacher: its weights, or its head where it is not loaded, or not for long."""
    settings, found, alone = recipe.teacher, dict[str, int](), [0]
    assert isinstance(settings, SeveralTeacherSettings)  # noqa: S101  the caller has looked
    for name, one in each_teacher(recipe).items():
        config = teacher_config(one)
        assert config is not None  # noqa: S101  each has one
        match one.teacher:
            case CachedTeacherSettings():
                found[f"teacher {name}, its head"] = head_bytes(one.teacher)
            case RemoteTeacherSettings():
                found[f"teacher {name}, its head, at most"] = _head(config)
            case other:
                dtype = other.dtype if isinstance(other, LiveTeacherSettings) else "float32"
                size = parameter_count(config).total * _BYTES[dtype]
                if settings.sequential:
                    alone.append(size)
                    found[f"teacher {name}, its head, at most"] = _head(config)
                else:
                    found[f"teacher {name}"] = size
    largest = {"largest teacher, alone before the first step": max(alone)}
    return found | (largest if settings.sequential else {})


def _kept_while_writing(recipe: Recipe, shape: PretrainedConfig) -> int:
    """Bytes of the cache where the student writes, its rows as long as they may become."""
    settings, text = recipe.rollouts, shape.get_text_config()
    assert isinstance(settings, WritingSettings)  # noqa: S101  the caller has looked
    num_rows = min(settings.batch_rows, recipe.training.rows_per_batch)
    longest = settings.max_prompt_tokens + settings.max_completion_tokens
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = 2 * heads * int(size)
    return num_rows * longest * width * text.num_hidden_layers * _BYTES[recipe.student.dtype]


def _context(settings: SelfTeacherSettings) -> str:
    named = "" if settings.column is None else f" from column {settings.column}"
    return {"none": "nothing more", "other": "another problem's solution"}.get(
        settings.context, f"the row's {settings.context}{named}"
    )


def _size(count: ParameterCount) -> str:
    millions = f"{count.total / 1e6:.1f} M" if count.total >= _MEGABYTE else f"{count.total:,}"
    inside = f"{count.layers:,} in them, {count.embedding + count.head:,} in the vocabulary"
    experts = ""
    if count.active_feed_forward < count.feed_forward:
        experts = (
            f"; of {count.feed_forward:,} in feed-forward parts, a token uses "
            f"{count.active_feed_forward:,}"
        )
    return f"{millions} parameters, {count.num_layers} layers ({inside}{experts})"


def _memory(megabytes: int | float) -> str:
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.1f} MB"  # noqa: PLR2004
