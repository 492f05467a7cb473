"""How far a student is from its teacher on held-out completions: one number each, in nats."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tutelage.core.errors import DataError, NumericsError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import Head, HiddenTarget, LogitsTarget, SeveralTarget, Target
from tutelage.evaluation.undisturbed import undisturbed
from tutelage.models import CausalLM
from tutelage.objectives.fused import (
    FusedOptions,
    Measures,
    excluded_mass_of_hidden,
    fused_measures,
)
from tutelage.teachers import Teacher


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How the student is run while it is measured."""

    dtype: torch.dtype | None = None
    """Matrix products in this type (autocast); None: in the type of the weights."""
    fused: FusedOptions = field(default_factory=FusedOptions)
    """Tiles and precision of the scores. A move is not for evaluation: leave it out."""


@final
@dataclass(frozen=True, kw_only=True)
class PositionCurve:
    """Mean forward KL at each place of a completion, from its first token on."""

    position: tuple[int, ...]
    forward_kl: tuple[float, ...]
    count: tuple[int, ...]
    """Tokens that each mean is over."""

    def to_json(self) -> dict[str, list[Any]]:
        """The three columns, as positions.json holds them."""
        return {
            "position": list(self.position),
            "forward_kl": list(self.forward_kl),
            "count": list(self.count),
        }


@final
@dataclass(frozen=True, kw_only=True)
class DivergenceReport:
    """Means over every trained token; divergences and entropies in nats.

    What compares with a teacher is None where there is none.
    """

    num_tokens: int
    perplexity: float
    """Of the student, on the completions."""
    student_entropy: float
    forward_kl: float | None = None
    reverse_kl: float | None = None
    top1_agreement: float | None = None
    """Share of tokens where both put the same entry on top."""
    teacher_perplexity: float | None = None
    teacher_entropy: float | None = None
    student_excluded_mass: float = 0.0
    """Probability the student gives to entries that the two do not share, before they are
    masked out."""
    teacher_excluded_mass: float = 0.0
    """The same for the teacher."""
    bits_per_byte: float | None = None
    """With a teacher of another tokenizer, like all that follows: of the student, on the text
    that both can say."""
    teacher_bits_per_byte: float | None = None
    aligned_kl: float | None = None
    """Forward KL over the outcomes of each group of tokens, for each trained token."""
    held_out_loss: float | None = None
    """The objective's own value."""
    aligned_token_share: float | None = None
    aligned_byte_share: float | None = None
    by_position: PositionCurve | None = None

    def numbers(self) -> dict[str, float]:
        """Everything that is one number and is known, by name, for metrics.jsonl."""
        known = {name: each for name, each in vars(self).items() if isinstance(each, int | float)}
        return {name: float(value) for name, value in known.items()}


@final
@dataclass(frozen=True, kw_only=True)
class Sides:
    """What student and teacher answer to one batch, before anything is compared."""

    student: HiddenTarget
    teacher: HiddenTarget | LogitsTarget | SeveralTarget | None


Look: TypeAlias = Callable[[Sides], None]


def evaluate_divergence(
    student: CausalLM,
    teacher: Teacher | None,
    batches: Iterable[TokenBatch],
    *,
    options: EvaluationOptions | None = None,
    look: Look | None = None,
) -> DivergenceReport:
    """Measure the student, and how far it is from the teacher where there is one.

    Every trained token weighs the same, however the rows are cut into batches: on the rows of a
    training step this is the very mean that the step's loss is. Nothing that training depends on
    is touched: no mode, no random generator, no clock.

    Args:
        look: is shown both sides of every batch, for what these means do not hold.

    Raises:
        DataError: there is no token to measure, or the teacher does not answer with scores.
        NumericsError: a model's output is nan.
    """
    sums = _Sums()
    with undisturbed(student):
        for batch in batches:
            sides = sides_of(student, teacher, batch, options=options)
            sums.add(measured(sides, batch, options=options), batch.loss_mask)
            if look is not None:
                look(sides)
    return sums.report()


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """One batch, token by token."""

    measures: Measures
    student_excluded: Float[Tensor, " N"] | None
    teacher_excluded: Float[Tensor, " N"] | None
    offset_in_row: Tensor


@torch.no_grad()
def sides_of(
    student: CausalLM,
    teacher: Teacher | None,
    batch: TokenBatch,
    *,
    options: EvaluationOptions | None = None,
) -> Sides:
    """Both models' answers for each of the batch's N tokens, in the student's current mode."""
    view, half = batch.student, (options or EvaluationOptions()).dtype
    with torch.autocast(view.input_ids.device.type, dtype=half, enabled=half is not None):
        hidden = student.hidden(view)[view.predicts]
    return Sides(
        student=HiddenTarget(hidden=hidden, head=student.head, labels=batch.labels),
        teacher=None if teacher is None else _whole(teacher.score(batch)),
    )


@torch.no_grad()
def measured(
    sides: Sides, batch: TokenBatch, *, options: EvaluationOptions | None = None
) -> Measured:
    """What is measured of both sides, for each of the batch's N tokens."""
    fused = (options or EvaluationOptions()).fused
    own, target = sides.student, sides.teacher
    num_shared = min(_num_real(side) for side in (own, target) if side is not None)
    return Measured(
        measures=fused_measures(own.hidden, own.head, target, labels=batch.labels, options=fused),
        student_excluded=_excluded(own, num_shared, fused),
        teacher_excluded=None if target is None else _excluded(target, num_shared, fused),
        offset_in_row=batch.offset_in_row,
    )


def _whole(target: Target) -> HiddenTarget | LogitsTarget | SeveralTarget:
    if not isinstance(target, HiddenTarget | LogitsTarget | SeveralTarget):
        raise DataError(
            f"The teacher answers with a {type(target).__name__}; it must be scores over the "
            "whole vocabulary (HiddenTarget or LogitsTarget). Evaluate against a live teacher."
        )
    return target


def _num_real(target: HiddenTarget | LogitsTarget | SeveralTarget) -> int:
    if isinstance(target, SeveralTarget):
        return min(_num_real(one) for one in target.members)
    if isinstance(target, LogitsTarget):
        return target.num_real or target.logits.shape[-1]
    return target.head.num_real or _num_entries(target.head)


def _num_entries(head: Head) -> int:
    return head.weight.shape[0]


def _excluded(
    target: HiddenTarget | LogitsTarget | SeveralTarget, num_shared: int, options: FusedOptions
) -> Float[Tensor, " N"] | None:
    """The mass behind the shared entries; None where nothing lies there."""
    if isinstance(target, SeveralTarget):
        # Each teacher's own, by what it counts: the entries are cut off before they are blended.
        found = [_excluded(one, num_shared, options) for one in target.members]
        parts = [w * m for w, m in zip(target.weights.T, found, strict=True) if m is not None]
        return torch.stack(parts).sum(dim=0) if parts else None
    if isinstance(target, LogitsTarget):
        if target.logits.shape[-1] == num_shared:
            return None
        return target.logits.float().softmax(dim=-1)[..., num_shared:].sum(dim=-1)
    if _num_entries(target.head) == num_shared:
        return None
    return excluded_mass_of_hidden(
        target.hidden, target.head, num_shared=num_shared, options=options
    )


@final
class _Sums:
    """Sums over trained tokens in float64, so that the order of batches hardly matters."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._totals: dict[str, float] = {}
        self._kl_at: list[float] = []
        self._count_at: list[int] = []

    def add(self, measured: Measured, loss_mask: Bool[Tensor, " N"]) -> None:
        found = measured.measures
        self._num_tokens += int(loss_mask.sum())
        for name, values in (
            ("student_surprise", found.student_label_logp),
            ("student_entropy", found.student_entropy),
            ("forward_kl", found.forward_kl),
            ("reverse_kl", found.reverse_kl),
            ("top1_agreement", found.agree),
            ("teacher_surprise", found.teacher_label_logp),
            ("teacher_entropy", found.teacher_entropy),
            ("student_excluded_mass", measured.student_excluded),
            ("teacher_excluded_mass", measured.teacher_excluded),
        ):
            if values is not None:
                total = float(values.double()[loss_mask].sum())
                self._totals[name] = self._totals.get(name, 0.0) + total
        if found.forward_kl is not None:
            self._add_positions(
                found.forward_kl.double()[loss_mask], measured.offset_in_row[loss_mask]
            )

    def _add_positions(self, forward_kl: Float[Tensor, " N"], offset: Tensor) -> None:
        if not len(offset):
            return
        sums = torch.bincount(offset, weights=forward_kl).tolist()
        counts = torch.bincount(offset).tolist()
        missing = len(counts) - len(self._count_at)
        self._kl_at += [0.0] * missing
        self._count_at += [0] * missing
        for place, (total, count) in enumerate(zip(sums, counts, strict=True)):
            self._kl_at[place] += total
            self._count_at[place] += count

    def report(self) -> DivergenceReport:
        if self._num_tokens == 0:
            raise DataError(
                "The held-out rows have 0 trained tokens; they must have at least one. "
                "Check evaluation.num_rows and the data."
            )
        mean = {name: total / self._num_tokens for name, total in self._totals.items()}
        for name, value in mean.items():
            if math.isnan(value):
                raise NumericsError(
                    f"{name} on the held-out rows is nan; it must be a number. "
                    "Check the student's weights, lower training.learning_rate or use float32."
                )
        student_surprise = -mean.pop("student_surprise")
        teacher_surprise = mean.pop("teacher_surprise", None)
        return DivergenceReport(
            num_tokens=self._num_tokens,
            perplexity=_perplexity(student_surprise),
            teacher_perplexity=None if teacher_surprise is None else _perplexity(-teacher_surprise),
            by_position=self._curve() if "forward_kl" in mean else None,
            **mean,
        )

    def _curve(self) -> PositionCurve:
        places = [place for place, count in enumerate(self._count_at) if count]
        return PositionCurve(
            position=tuple(places),
            forward_kl=tuple(self._kl_at[place] / self._count_at[place] for place in places),
            count=tuple(self._count_at[place] for place in places),
        )


def _perplexity(nats: float) -> float:
    # A student far off has a perplexity that no float holds.
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
