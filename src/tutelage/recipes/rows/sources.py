"""Who completes the rows of a run, built from the settings and told in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from transformers import PretrainedConfig

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Rollout
from tutelage.core.seeds import seed_for
from tutelage.models import CausalLM
from tutelage.recipes.config import Recipe
from tutelage.rollouts import (
    DatasetRollouts,
    DatasetRolloutSettings,
    MixedRollouts,
    MixedRolloutSettings,
    Order,
    ReplayRollouts,
    ReplayRolloutSettings,
    RolloutSettings,
    RolloutSource,
    StudentRollouts,
    StudentRolloutSettings,
    TeacherRollouts,
    TeacherRolloutSettings,
    Writing,
    WritingSettings,
)
from tutelage.rollouts.engines import Engine, VllmEngine, VllmSettings, engine_named, refusal
from tutelage.training import Ranks

_SKIPS = "skip"


@final
@dataclass(frozen=True, kw_only=True)
class Writers:
    """The models that may complete rows."""

    student: CausalLM
    teacher: CausalLM | None
    num_real: int | None
    """Entries that both vocabularies share; only those are written. None: all of them."""
    vllm: VllmEngine | None = None
    """Where `rollouts.engine` asks for it."""


def writes(settings: RolloutSettings) -> frozenset[str]:
    """Who writes completions while the run goes on: student, teacher, both or nobody."""
    match settings:
        case DatasetRolloutSettings():
            return frozenset()
        case TeacherRolloutSettings():
            return frozenset({"teacher"})
        case MixedRolloutSettings(otherwise="teacher"):
            return frozenset({"student", "teacher"})
        case _:
            return frozenset({"student"})


def make_rollouts(
    recipe: Recipe, rows: Sequence[Rollout], writers: Writers, ranks: Ranks
) -> RolloutSource:
    """Where the rows of each step come from."""
    settings = recipe.rollouts
    order = Order(
        seed=seed_for(recipe.seed, "rollouts"),
        shuffle=settings.shuffle,
        rank=ranks.rank,
        num_ranks=ranks.num_ranks,
    )
    match settings:
        case DatasetRolloutSettings():
            return _from_data(rows, order)
        case StudentRolloutSettings():
            return _by_student(recipe, settings, rows, writers, order)
        case TeacherRolloutSettings():
            return _by_teacher(settings, rows, writers, order)
        case MixedRolloutSettings(otherwise=otherwise):
            by_teacher = otherwise == "teacher"
            return MixedRollouts(
                _by_student(recipe, settings, rows, writers, order),
                _by_teacher(settings, rows, writers, order)
                if by_teacher
                else _from_data(rows, order),
                clock=settings.clock(),
            )
        case ReplayRolloutSettings():
            return ReplayRollouts(
                _by_student(recipe, settings, rows, writers, order),
                num_rows=settings.buffer_rows,
                clock=settings.clock(),
                train_on=settings.train_on,
            )


def _from_data(rows: Sequence[Rollout], order: Order) -> DatasetRollouts:
    return DatasetRollouts(
        rows,
        seed=order.seed,
        shuffle=order.shuffle,
        rank=order.rank,
        num_ranks=order.num_ranks,
    )


def _by_student(
    recipe: Recipe,
    settings: WritingSettings,
    rows: Sequence[Rollout],
    writers: Writers,
    order: Order,
) -> StudentRollouts:
    # The student writes in the precision it learns in.
    half = torch.bfloat16 if recipe.training.precision == "bf16" else None
    prompts = [row.prompt for row in rows]
    writing = _writing(settings, writers, half)
    rollouts = StudentRollouts(writers.student, prompts, writing, order)
    _refuse_engine(settings, writers.student, rollouts, half)
    return rollouts


def _by_teacher(
    settings: WritingSettings, rows: Sequence[Rollout], writers: Writers, order: Order
) -> TeacherRollouts:
    if writers.teacher is None:
        raise ConfigError(
            "teacher is missing, and rollouts are to be written by one; it must be given. "
            "Name a model in teacher.model, or let the student write."
        )
    prompts = [row.prompt for row in rows]
    rollouts = TeacherRollouts(writers.teacher, prompts, _writing(settings, writers, None), order)
    _refuse_engine(settings, writers.teacher, rollouts, None)
    return rollouts


def _writing(settings: WritingSettings, writers: Writers, dtype: torch.dtype | None) -> Writing:
    vllm = writers.vllm
    return Writing(
        sampling=settings.sampling,
        dtype=dtype,
        num_real=writers.num_real,
        completions_per_prompt=settings.completions_per_prompt,
        skip_empty=settings.empty_completions == _SKIPS,
        engine=_engine(settings, vllm),
        numbers=dict[str, float] if vllm is None else lambda: vllm.numbers,
    )


def _engine(settings: WritingSettings, vllm: VllmEngine | None) -> Engine:
    if settings.engine != "vllm":
        return engine_named(settings.engine)
    assert vllm is not None  # noqa: S101  whoever asks for it has made it
    return vllm


def _refuse_engine(
    settings: WritingSettings,
    lm: CausalLM,
    rollouts: StudentRollouts | TeacherRollouts,
    dtype: torch.dtype | None,
) -> None:
    """Refuse to begin with an engine that would fail at the first step."""
    if settings.engine != "slots":
        return
    reason = refusal(lm, num_tokens=rollouts.longest, dtype=dtype)
    if reason is not None:
        raise ConfigError(
            f"rollouts.engine is slots, and {reason} (the {rollouts.source} writes); it must be "
            "auto or hf then. Set it to auto, which takes the slots wherever it can."
        )


def refuse_no_room(
    recipe: Recipe, rows: Sequence[Rollout], shapes: Mapping[str, PretrainedConfig | None]
) -> None:
    """Refuse a prompt behind which a completion may not fit into the model that writes it.

    Args:
        shapes: the models' configurations, by `student` and `teacher`.

    Raises:
        DataError: naming the row with the longest prompt.
    """
    for who in sorted(writes(recipe.rollouts)):
        shape = shapes[who]
        room = None if shape is None else shape.get_text_config().max_position_embeddings

        def length(row: Rollout, who: str = who) -> int:
            own = row.prompt.teacher_ids if who == "teacher" else None
            return len(row.prompt.student_ids if own is None else own)

        longest = max(rows, key=length)
        wanted = length(longest) + recipe.rollouts.max_completion_tokens
        if room is not None and wanted > room:
            raise DataError(
                f"{longest.prompt.name}: the prompt and rollouts.max_completion_tokens come to "
                f"{wanted} tokens; they must be at most {room}, which is what the {who} reads. "
                "Lower rollouts.max_completion_tokens, or rollouts.max_prompt_tokens with "
                "too_long: drop."
            )


def described(settings: RolloutSettings) -> str:
    """In a line: who completes the rows, and how."""
    match settings:
        case DatasetRolloutSettings():
            return f"the data's own completions, cut at {settings.max_completion_tokens} tokens"
        case StudentRolloutSettings():
            who = "the student completes every prompt"
        case TeacherRolloutSettings():
            who = "the teacher completes every prompt"
        case MixedRolloutSettings():
            share = _travel(settings.student_share, settings.final_student_share)
            who = f"the student completes {share} of the rows, the {settings.otherwise} the others"
        case ReplayRolloutSettings():
            share = _travel(settings.fresh_share, settings.final_fresh_share)
            who = (
                f"the student completes {share} of the rows anew, the others come from the last "
                f"{settings.buffer_rows:,} it wrote"
            )
    by = f", by vLLM ({_vllm(settings)})" if settings.engine == "vllm" else ""
    return f"{who}; up to {settings.max_completion_tokens} tokens, {_drawn(settings)}{by}"


def _vllm(settings: WritingSettings) -> str:
    chosen = settings.vllm or VllmSettings()
    where = "started by the run" if chosen.url is None else f"at {chosen.url}"
    often = "" if chosen.sync_every == 1 else f" {chosen.sync_every}"
    plural = "" if chosen.sync_every == 1 else "s"
    return f"{where}, given the weights every{often} step{plural}"


def _travel(start: float, end: float | None) -> str:
    return f"{start:.0%}" if end in (None, start) else f"{start:.0%} (at last {end:.0%})"


def _drawn(settings: WritingSettings) -> str:
    if settings.temperature == 0:
        return "greedily"
    parts = [f"at temperature {settings.temperature:g}"]
    parts += [f"top_p {settings.top_p:g}"] if settings.top_p < 1 else []
    parts += [f"top_k {settings.top_k}"] if settings.top_k is not None else []
    return ", ".join(parts)
