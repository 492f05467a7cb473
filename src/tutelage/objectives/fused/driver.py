"""The loop behind the fused loss: tiles of tokens, blocks of rows, no [N, V] tensor anywhere."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.targets import (
    Head,
    HiddenTarget,
    LogitsTarget,
    PartialTarget,
    SameVocabularyTarget,
    SampledTarget,
    SeveralTarget,
    TopKTarget,
)
from tutelage.objectives.fused.blended import BlendedScores
from tutelage.objectives.fused.head_gradient import HeadGradient
from tutelage.objectives.fused.options import FusedOptions
from tutelage.objectives.fused.scores import (
    GivenScores,
    LinearScores,
    Memory,
    Scores,
    exact_mode,
    real_entries,
    target_entries,
)
from tutelage.objectives.fused.scratch import Scratch, borrowed
from tutelage.objectives.fused.tiles import block_rows, spans, tile_tokens, useful_tokens
from tutelage.objectives.partial import refuse_move


@final
@dataclass(frozen=True, kw_only=True)
class Block:
    """A few rows of full-precision scores; whoever gets them may overwrite them."""

    student: Float[Tensor, "R V"]
    teacher: Float[Tensor, "R V"] | None
    """None where only the student is looked at, or the teacher's answer is no scores."""
    labels: Int[Tensor, " R"] | None
    at: slice
    """Their place among all tokens."""
    in_tile: slice
    """Their place in the loaded tile."""


BlockFunction = Callable[[Block], Tensor]
"""A block to nats a row, leaving d value / d scores in the student's rows: `Objective.rows`."""


@final
@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call: the tensors of both sides, detached, and how to work on them."""

    student_hidden: Float[Tensor, "N D"]
    student_head: Head
    target: SameVocabularyTarget | None
    """None where only the student is looked at."""
    options: FusedOptions
    given_labels: Int[Tensor, " N"] | None = None

    @property
    def num_entries(self) -> int:
        """V: the real entries that both sides share."""
        student = real_entries(self.student_head)
        if self.target is None:
            return student
        return min(student, target_entries(self.target, student=student))

    @property
    def labels(self) -> Int[Tensor, " N"] | None:
        """The completion's own ids."""
        from_target = None if self.target is None else self.target.labels
        return self.given_labels if from_target is None else from_target

    @property
    def row_dtype(self) -> torch.dtype:
        """fp32, or fp64 when any side comes in it."""
        dtypes = [self.student_hidden.dtype]
        if self.target is not None:
            dtypes.append(_numbers(self.target).dtype)
        return torch.float64 if torch.float64 in dtypes else torch.float32


def _numbers(target: SameVocabularyTarget) -> Tensor:
    match target:
        case HiddenTarget(hidden=numbers) | LogitsTarget(logits=numbers):
            return numbers
        case TopKTarget(logp=numbers) | SampledTarget(weights=numbers):
            return numbers
        case SeveralTarget(members=(HiddenTarget(hidden=numbers), *_)):
            return numbers
        case SeveralTarget():
            raise AssertionError  # it has a member


@final
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which gradients to make."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False

    @property
    def any(self) -> bool:
        """Whether the row functions leave gradients behind at all."""
        return self.hidden or self.weight or self.bias


@final
@dataclass(kw_only=True)
class Gradients:
    """d loss / d (hidden states, head weight, head bias), where wanted."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def _linear(
    side: str, hidden: Float[Tensor, "N D"], head: Head, problem: Problem, scratch: Scratch
) -> LinearScores:
    dtype = problem.options.matmul_dtype or hidden.dtype
    return LinearScores(
        hidden.detach().to(dtype),
        head,
        num_entries=problem.num_entries,
        row_dtype=problem.row_dtype,
        mode=exact_mode(problem.options.logits, dtype, hidden.device),
        memory=Memory(scratch=scratch, side=side),
    )


def _teacher_scores(problem: Problem, scratch: Scratch) -> Scores | None:
    target = problem.target
    if isinstance(target, HiddenTarget):
        return _linear("teacher", target.hidden, target.head, problem, scratch)
    if target is None or isinstance(target, PartialTarget):
        return None
    if isinstance(target, SeveralTarget):
        members = [
            _linear(f"teacher {number}", one.hidden, one.head, problem, scratch)
            for number, one in enumerate(target.members)
        ]
        return BlendedScores(members, target, Memory(scratch=scratch, side="blended teachers"))
    return GivenScores(target.logits, num_entries=problem.num_entries)


def _linear_of(scores: Scores | None) -> Sequence[LinearScores]:
    match scores:
        case LinearScores():
            return [scores]
        case BlendedScores(members=members):
            return members
        case _:
            return []


@final
class Walk:
    """Both sides' scores and all scratch memory of one call; `walking` makes one."""

    def __init__(self, problem: Problem, scratch: Scratch) -> None:
        refuse_move(problem.target, problem.options.move)
        self.problem = problem
        self.scratch = scratch
        hidden, head = problem.student_hidden, problem.student_head
        self.student = _linear("student", hidden, head, problem, scratch)
        self.teacher = _teacher_scores(problem, scratch)
        linear = [self.student, *_linear_of(self.teacher)]
        num_tokens = self.num_tokens = problem.student_hidden.shape[0]
        self.tile_tokens = problem.options.tile_tokens or tile_tokens(
            num_tokens,
            bytes_per_token=sum(s.bytes_per_token for s in linear),
            memory_bytes=problem.options.memory_bytes,
            useful_tokens=useful_tokens(self.student.hidden.dtype, self.student.hidden.device),
        )
        self.tile_tokens = max(min(self.tile_tokens, num_tokens), 1)
        for scores in linear:
            scores.allocate(self.tile_tokens)
        entries = problem.num_entries
        self.block_rows = min(block_rows(entries, self.student.hidden.device), self.tile_tokens)
        self.student_rows = self.rows_buffer("student rows")
        self.teacher_rows = self.rows_buffer("teacher rows")

    def rows_buffer(self, name: str) -> Float[Tensor, "R V"]:
        """Room for one block of rows."""
        problem = self.problem
        return self.scratch.take(
            name,
            (self.block_rows, problem.num_entries),
            dtype=problem.row_dtype,
            device=problem.student_hidden.device,
        )

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Load one tile of tokens after the other."""
        for first, last in spans(self.num_tokens, self.tile_tokens):
            self.student.load(first, last)
            if self.teacher is not None:
                self.teacher.load(first, last)
            yield first, last

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """The loaded tile, a few rows at a time, with the teacher's side moved."""
        labels, options = self.problem.labels, self.problem.options
        for start, stop in spans(last - first, self.block_rows):
            count, at = stop - start, slice(first + start, first + stop)
            student = self.student.rows(start, stop, self.student_rows[:count])
            teacher = None
            if self.teacher is not None:
                teacher = self.teacher.rows(start, stop, self.teacher_rows[:count])
                if options.move is not None:
                    t = options.t
                    options.move.move_rows(
                        student, teacher, t=t[at] if isinstance(t, Tensor) else t
                    )
            yield Block(
                student=student,
                teacher=teacher,
                labels=None if labels is None else labels[at],
                at=at,
                in_tile=slice(start, stop),
            )


@contextmanager
def walking(problem: Problem) -> Generator[Walk]:
    """A walk, for as long as it may use this thread's scratch memory."""
    with borrowed() as scratch:
        yield Walk(problem, scratch)


@final
class Backward:
    """Turns each block of d value / d scores into the gradients of hidden states and head."""

    def __init__(self, walk: Walk, token_weights: Float[Tensor, " N"], wanted: Wanted) -> None:
        self.walk, self.wanted = walk, wanted
        side, head = walk.student, walk.problem.student_head
        # Blocks carry weights of at most 1; the common factor enters where sums are fp32 or
        # better, so that a small weight underflows nowhere.
        weights = token_weights.detach().to(side.row_dtype)
        largest = float(weights.abs().max()) if weights.numel() else 0.0
        self.factor = (largest or 1.0) * side.scale
        self.weights = weights / (largest or 1.0)
        self.uniform = bool((self.weights == 1).all())
        self.slopes = None if side.softcap is None else walk.rows_buffer("slopes")
        matmul = side.hidden.dtype
        self.tile = side.tile
        if side.tile_dtype != matmul:
            self.tile = walk.scratch.take(
                "gradient tile", tuple(side.tile.shape), dtype=matmul, device=side.tile.device
            )
        self.hidden = torch.empty_like(side.hidden) if wanted.hidden else None
        self.weight = (
            HeadGradient(
                (head.weight.shape[0], head.weight.shape[1]),
                dtype=head.weight.dtype,
                matmul_dtype=matmul,
                scratch=walk.scratch,
                device=side.hidden.device,
            )
            if wanted.weight
            else None
        )
        self.bias = (
            side.hidden.new_zeros(head.weight.shape[0], dtype=side.row_dtype)
            if wanted.bias
            else None
        )

    def before_block(self, student: Float[Tensor, "R V"]) -> None:
        """Keep what the chain rule through the soft-cap needs: 1 - (score / cap)^2."""
        cap = self.walk.student.softcap
        if self.slopes is None or cap is None:
            return
        slopes = self.slopes[: student.shape[0]]
        torch.mul(student, student, out=slopes).mul_(-1 / cap**2).add_(1)

    def after_block(self, block: Block) -> None:
        """Chain rule back to the raw matmul output, weights, then into the tile."""
        gradient = block.student
        if self.slopes is not None:
            gradient.mul_(self.slopes[: gradient.shape[0]])
        if not self.uniform:
            weights = self.weights[block.at, None]
            gradient.mul_(weights).masked_fill_(weights == 0, 0)
        if self.bias is not None:
            self.bias[: gradient.shape[1]] += gradient.sum(0) * self.factor
        kept = self.tile[block.in_tile]
        if kept.data_ptr() != gradient.data_ptr():
            kept.copy_(gradient)

    def after_tile(self, first: int, last: int) -> None:
        """Contract the tile at once."""
        side = self.walk.student
        gradient, hidden = self.tile[: last - first], side.hidden[first:last]
        if self.hidden is not None:
            out = self.hidden[first:last]
            torch.mm(gradient, side.weight, out=out)
            out.mul_(self.factor)
        if self.weight is not None:
            self.weight.add(gradient, hidden, self.factor)

    def gradients(self) -> Gradients:
        """All of them, in their parameters' dtypes and shapes."""
        problem = self.walk.problem
        bias = problem.student_head.bias
        return Gradients(
            hidden=None if self.hidden is None else self.hidden.to(problem.student_hidden.dtype),
            weight=None if self.weight is None else self.weight.result(),
            bias=None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


def differentiate(
    problem: Problem, rows: BlockFunction, token_weights: Float[Tensor, " N"], wanted: Wanted
) -> tuple[Float[Tensor, " N"], Gradients]:
    """Nats of each token, and the gradients of their weighted sum: three or four matmuls."""
    with walking(problem) as walk:
        per_token = problem.student_hidden.new_empty(walk.num_tokens, dtype=problem.row_dtype)
        backward = Backward(walk, token_weights, wanted)
        for first, last in walk.tiles():
            for block in walk.blocks(first, last):
                backward.before_block(block.student)
                per_token[block.at] = rows(block)
                backward.after_block(block)
            backward.after_tile(first, last)
        return per_token, backward.gradients()


def evaluate(problem: Problem, rows: BlockFunction) -> Float[Tensor, " N"]:
    """Nats of each token: two matmuls."""
    with walking(problem) as walk:
        per_token = problem.student_hidden.new_empty(walk.num_tokens, dtype=problem.row_dtype)
        for first, last in walk.tiles():
            for block in walk.blocks(first, last):
                per_token[block.at] = rows(block)
        return per_token
