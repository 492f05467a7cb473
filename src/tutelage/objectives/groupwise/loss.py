# pyright: basic, reportAttributeAccessIssue=false
"""The loss of a student whose teacher has another tokenizer: no full logits of either."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tutelage.core.crossing import SharedWords
from tutelage.core.errors import ConfigError
from tutelage.core.targets import Head, HiddenTarget, OtherVocabularyTarget
from tutelage.objectives.cross_vocabulary import CrossVocabulary, DualSpace, GroupScores
from tutelage.objectives.fused import FusedLoss, FusedOptions, fused_loss, fused_per_token
from tutelage.objectives.fused.driver import (
    Block,
    Gradients,
    Problem,
    Wanted,
    differentiate,
    evaluate,
)
from tutelage.objectives.fused.scores import (
    LinearScores,
    Memory,
    exact_mode,
    labels_only,
    real_entries,
)
from tutelage.objectives.fused.scratch import Scratch
from tutelage.objectives.fused.tiles import tile_tokens, useful_tokens
from tutelage.objectives.groupwise.dual import dual_space_loss
from tutelage.objectives.objective import Objective
from tutelage.objectives.on_policy.policy_gradient import PolicyGradient
from tutelage.objectives.union import WeightedSum

_DEFAULTS = FusedOptions()


def can_cross(objective: Objective) -> bool:
    """Whether a student may learn by it from a teacher of another tokenizer."""
    if isinstance(objective, WeightedSum):
        return all(can_cross(part.objective) for part in objective.parts)
    return isinstance(objective, CrossVocabulary | DualSpace) or not objective.needs_teacher


def needs_bridge(objective: Objective) -> bool:
    """Whether projections between the two models are trained along."""
    if isinstance(objective, WeightedSum):
        return any(needs_bridge(part.objective) for part in objective.parts)
    return isinstance(objective, DualSpace)


def groupwise_loss(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    target: OtherVocabularyTarget,
    objective: Objective,
    *,
    token_weights: Float[Tensor, " N"],
    options: FusedOptions = _DEFAULTS,
) -> FusedLoss:
    """What `fused_loss` is for teachers of the same tokenizer.

    A group's value has the weight of its first token. The gradient reaches the student's rows that
    predict the tokens of groups, and no other. Objectives that ask no teacher are what they always
    are, alone or in a sum.

    Raises:
        ConfigError: an objective that needs both models to have one vocabulary.
    """
    head = replace(student_head, num_real=target.words.num_student)
    if isinstance(objective, WeightedSum):
        parts = [
            groupwise_loss(
                student_hidden,
                student_head,
                target,
                part.objective,
                token_weights=token_weights * part.weight,
                options=options,
            )
            for part in objective.parts
        ]
        per_token = [
            p.weight * one.per_token for p, one in zip(objective.parts, parts, strict=True)
        ]
        return FusedLoss(
            loss=torch.stack([one.loss for one in parts]).sum(),
            per_token=torch.stack(per_token).sum(dim=0),
        )
    if not objective.needs_teacher:
        labels = labels_only(target.labels, head)
        return fused_loss(
            student_hidden, head, labels, objective, token_weights=token_weights, options=options
        )
    if isinstance(objective, DualSpace):
        return dual_space_loss(
            student_hidden,
            head,
            target,
            objective,
            token_weights=token_weights,
            options=options,
        )
    if not isinstance(objective, CrossVocabulary):
        raise ConfigError(
            f"The objective is {type(objective).__name__}, and the teacher has another tokenizer "
            "than the student; it must be one across vocabularies. Use aligned_kl or uld."
        )
    return _by_groups(student_hidden, head, target, objective, token_weights, options)


@torch.no_grad()
def groupwise_per_token(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    target: OtherVocabularyTarget,
    objective: Objective,
    *,
    options: FusedOptions = _DEFAULTS,
) -> Float[Tensor, " N"]:
    """The value at each token, without gradient."""
    weights = student_hidden.new_ones(len(student_hidden), dtype=torch.float32)
    return groupwise_loss(
        student_hidden,
        student_head,
        target,
        objective,
        token_weights=weights,
        options=options,
    ).per_token


def _by_groups(
    hidden: Float[Tensor, "N D"],
    head: Head,
    target: OtherVocabularyTarget,
    objective: CrossVocabulary,
    token_weights: Float[Tensor, " N"],
    options: FusedOptions,
) -> FusedLoss:
    groups, teacher = target.groups, target.teacher
    assert teacher.labels is not None  # noqa: S101  a teacher of its own words has them
    at = objective.at_temperature
    later = _later(
        HiddenTarget(hidden=hidden, head=head, labels=target.labels),
        (groups.student_first, groups.student_count),
        at,
        options,
    )
    with torch.no_grad():
        theirs = _later(teacher, (groups.teacher_first, groups.teacher_count), at, options)
    first = groups.student_first
    call = _Call(
        head=head,
        teacher=replace(teacher, hidden=teacher.hidden[groups.teacher_first], labels=None),
        teacher_first=teacher.labels[groups.teacher_first],
        teacher_later=theirs,
        student_first=target.labels[first],
        words=target.words,
        objective=objective,
        options=options,
        weights=token_weights.detach()[first],
    )
    loss, values = _Groupwise.apply(call, hidden[first], head.weight, head.bias, later)
    per_token = values.new_zeros(len(hidden)).index_copy(0, first, values)
    return FusedLoss(loss=loss, per_token=per_token)


def _later(
    side: HiddenTarget,
    groups: tuple[Int[Tensor, " G"], Int[Tensor, " G"]],
    temperature: float,
    options: FusedOptions,
) -> Float[Tensor, " G"]:
    """Log-probability of each group's tokens behind its first, differentiable."""
    first, count = groups
    assert side.labels is not None  # noqa: S101  both sides bring theirs
    more = count - 1
    group = torch.repeat_interleave(torch.arange(len(count), device=count.device), more)
    begins = more.cumsum(0) - more
    rows = first[group] + 1 + torch.arange(len(group), device=count.device) - begins[group]
    nats = fused_per_token(
        side.hidden[rows],
        side.head,
        labels_only(side.labels[rows], side.head),
        PolicyGradient(temperature=temperature),
        options=options,
    )
    return nats.new_zeros(len(count)).index_add(0, group, -nats)


@final
@dataclass(frozen=True, kw_only=True)
class _Call:
    """All that autograd need not see; one row for each group."""

    head: Head
    teacher: HiddenTarget
    teacher_first: Tensor
    teacher_later: Tensor
    student_first: Tensor
    words: SharedWords
    objective: CrossVocabulary
    options: FusedOptions
    weights: Tensor

    def problem(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Problem:
        """The student's side alone: the teacher's rows have another size."""
        bias = None if bias is None else bias.detach()
        return Problem(
            student_hidden=hidden.detach(),
            student_head=replace(self.head, weight=weight.detach(), bias=bias),
            target=None,
            options=self.options,
        )


@final
class _Rows:
    """The value and gradient of a few groups: what the fused driver calls for each block."""

    def __init__(self, call: _Call, later: Tensor, row_dtype: torch.dtype) -> None:
        self._call = call
        self._later = later.detach()
        self._teacher = _TeacherRows(call.teacher, call.options, row_dtype)
        self.later_gradient = torch.zeros_like(self._later)

    def __call__(self, block: Block) -> Float[Tensor, " R"]:
        call, at = self._call, block.at
        temperature = call.objective.at_temperature
        teacher = self._teacher.rows(at.start, at.stop)
        with torch.enable_grad():
            scores = block.student.detach().clone().requires_grad_()
            later = self._later[at].clone().requires_grad_()
            values = call.objective.group_values(
                GroupScores(
                    logp=(scores / temperature).log_softmax(dim=1),
                    first=call.student_first[at],
                    later=later,
                ),
                GroupScores(
                    logp=(teacher / temperature).log_softmax(dim=1),
                    first=call.teacher_first[at],
                    later=call.teacher_later[at].to(teacher.dtype),
                ),
                call.words,
            )
            gradient, of_later = torch.autograd.grad(
                values.sum(), (scores, later), allow_unused=True
            )
        block.student.copy_(gradient)
        if of_later is not None:
            self.later_gradient[at] = of_later
        return values.detach()


class _TeacherRows:
    """The teacher's scores where groups begin, a tile at a time."""

    def __init__(
        self, teacher: HiddenTarget, options: FusedOptions, row_dtype: torch.dtype
    ) -> None:
        dtype = options.matmul_dtype or teacher.hidden.dtype
        self._num_rows = len(teacher.hidden)
        self._scores = LinearScores(
            teacher.hidden.detach().to(dtype),
            teacher.head,
            num_entries=real_entries(teacher.head),
            row_dtype=row_dtype,
            mode=exact_mode(options.logits, dtype, teacher.hidden.device),
            memory=Memory(scratch=Scratch(), side="teacher of groups"),
        )
        self._tile = options.tile_tokens or tile_tokens(
            self._num_rows,
            bytes_per_token=self._scores.bytes_per_token,
            memory_bytes=options.memory_bytes,
            useful_tokens=useful_tokens(dtype, teacher.hidden.device),
        )
        self._row_dtype = row_dtype
        self._first = self._last = 0

    def rows(self, start: int, stop: int) -> Float[Tensor, "R V"]:
        """Scores of these groups; asked for in order."""
        scores = self._scores
        if stop > self._last:
            if not scores.tile.numel():
                # A block must fit whole.
                self._tile = max(self._tile, stop - start)
                scores.allocate(self._tile)
            self._first, self._last = start, min(start + self._tile, self._num_rows)
            scores.load(self._first, self._last)
        shape = (stop - start, scores.weight.shape[0])
        scratch = torch.empty(shape, dtype=self._row_dtype, device=scores.tile.device)
        return scores.rows(start - self._first, stop - self._first, scratch)


class _Groupwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        call: _Call,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        later: Tensor,
    ) -> tuple[Tensor, Tensor]:
        problem = call.problem(hidden, weight, bias)
        rows = _Rows(call, later, problem.row_dtype)
        _, of_hidden, of_weight, of_bias, of_later = ctx.needs_input_grad
        wanted = Wanted(hidden=of_hidden, weight=of_weight, bias=of_bias)
        made = Gradients()
        if wanted.any or of_later:
            values, made = differentiate(problem, rows, call.weights, wanted)
        else:
            values = evaluate(problem, rows)
        counted = call.weights != 0
        weights = torch.where(counted, call.weights, 0.0).double()
        slopes = torch.where(counted, rows.later_gradient.double(), 0.0)
        ctx.gradients = (made.hidden, made.weight, made.bias, (weights * slopes).to(later.dtype))
        ctx.mark_non_differentiable(values)
        loss = (torch.where(counted, values.double(), 0.0) * weights).sum()
        return loss.to(values.dtype), values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        made = [None if one is None else one * upstream.to(one.dtype) for one in ctx.gradients]
        return None, *made
