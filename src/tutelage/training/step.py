"""One optimiser step: score, compare, go backwards, clip, move the student's weights once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from pydantic import PrivateAttr
from torch import Tensor, nn
from typing_extensions import override

from tutelage.core.errors import NumericsError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import (
    Head,
    HiddenTarget,
    LogitsTarget,
    SampledTarget,
    SeveralTarget,
    Target,
    TopKTarget,
)
from tutelage.models.causal_lm import CausalLM
from tutelage.objectives import Move, NoMove, Objective
from tutelage.objectives.fused import FusedOptions, fused_loss, fused_per_token
from tutelage.objectives.plain import plain_per_token
from tutelage.objectives.reduce import token_weights
from tutelage.objectives.softmax import expected, log_softmax_at
from tutelage.teachers.teacher import Teacher
from tutelage.training.collect import MicroBatch, Window
from tutelage.training.metrics import StepTotals
from tutelage.training.ranks import Ranks
from tutelage.training.settings import TrainingSettings

_NAMED = 5
"""Rows that an error message names, of those it counts."""


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one micro-batch gave."""

    share: Float[Tensor, ""]
    """Its part of the step's mean; differentiable."""
    per_token: Float[Tensor, " N"]
    """Nats of each token, without gradient."""
    moved_cross_entropy: Float[Tensor, ""] | None
    """Its part of the step's mean cross-entropy to the moved target, where that is measured."""


@final
class LossModule(nn.Module):
    """The student and its loss in one module, so that what is wrapped for DDP is what is called.

    Args:
        measure_moved: also measure the cross-entropy to the moved target, which an adaptive clock
            listens to. It costs a second softmax of each row and no matmul.
    """

    def __init__(
        self,
        student: CausalLM,
        objective: Objective,
        settings: TrainingSettings,
        *,
        move: Move,
        measure_moved: bool = False,
        sampled_at: float = 1.0,
    ) -> None:
        super().__init__()
        self.student = student
        if settings.gradient_checkpointing:
            student.model.activation_checkpointing_enable({"use_reentrant": False})
        self._objective = objective
        self._move = None if isinstance(move, NoMove) else move
        self._measure_moved = measure_moved
        self._weighting = settings.weighting
        self._sampled_at = sampled_at
        self._fused = settings.fused
        self._half = torch.bfloat16 if settings.precision == "bf16" else None
        self._options = FusedOptions(
            matmul_dtype=self._half,
            logits=settings.loss_logits,
            memory_bytes=settings.loss_megabytes * 2**20,
        )

    @override
    def forward(
        self,
        batch: TokenBatch,
        target: Target,
        weights: Float[Tensor, " N"],
        t: float | None,
    ) -> Comparison:
        """Compare the student with the target on every token of the batch."""
        hidden = self.hidden(batch)
        measured = _Measured(inner=self._move) if self._move and self._measure_moved else None
        options = replace(self._options, move=measured or self._move, t=t)
        head = self.student.head

        def unmoved(objective: Objective) -> Float[Tensor, " N"]:
            with torch.no_grad():
                if self._fused:
                    return fused_per_token(hidden, head, target, objective, options=self._options)
                return plain_per_token(hidden, head, target, objective, self._options)

        weighed = self._weighting.weighed(
            batch, weights, self._objective, sampled_at=self._sampled_at, per_token=unmoved
        )
        returns = self._weighting.returns(batch, self._objective, per_token=unmoved)
        if returns is not None:
            weighed_returns = -returns.to_go * weighed
            steered, _ = self._loss(hidden, target, returns.drawn, weighed_returns, options)
            # The value is that of the costs, as without returns; the gradient is the returns'.
            share = (returns.costs * weighed).sum() + steered - steered.detach()
            return Comparison(share=share, per_token=returns.costs, moved_cross_entropy=None)
        share, per_token = self._loss(hidden, target, self._objective, weighed, options)
        moved = None if measured is None else measured.mean(weighed)
        return Comparison(share=share, per_token=per_token, moved_cross_entropy=moved)

    def _loss(
        self,
        hidden: Float[Tensor, "N D"],
        target: Target,
        objective: Objective,
        weights: Float[Tensor, " N"],
        options: FusedOptions,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
        """The weighted sum, differentiable; and each token's nats, which are not."""
        head = self.student.head
        if self._fused:
            result = fused_loss(
                hidden, head, target, objective, token_weights=weights, options=options
            )
            return result.loss, result.per_token
        nats = plain_per_token(hidden, head, target, objective, options)
        # Weight 0 means left out, whatever stands there: 0 * nan would be nan.
        return (torch.where(weights != 0, nats, 0.0) * weights).sum(), nats.detach()

    def hidden(self, batch: TokenBatch) -> Float[Tensor, "N D"]:
        """The student's hidden states at the positions that predict the trained tokens."""
        device = batch.labels.device.type
        with torch.autocast(device, dtype=self._half, enabled=self._half is not None):
            return self.student.hidden(batch.student)[batch.student.predicts]


@final
class _Measured(Move):
    """A move that notes, in passing, how far the student is from where the target was moved."""

    inner: Move
    _nats: list[Tensor] = PrivateAttr(default_factory=list[Tensor])

    @override
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        return self.inner.moved(student_logits, teacher_logits, t=t)

    @override
    def move_rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        *,
        t: float | Float[Tensor, " R"] | None = None,
    ) -> None:
        self.inner.move_rows(student_logits, teacher_logits, t=t)
        moved = log_softmax_at(teacher_logits)
        self._nats.append(expected(moved.exp(), -log_softmax_at(student_logits)))

    def mean(self, weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """The weighted sum over all tokens; rows are moved in the order of the tokens."""
        if not self._nats:
            return weights.sum() * 0
        return (torch.where(weights != 0, torch.cat(self._nats), 0.0) * weights).sum()


@final
class Stepper:
    """Moves the student once for each window; all ranks call it alike."""

    def __init__(
        self,
        module: LossModule,
        teacher: Teacher | None,
        optimizer: torch.optim.Optimizer,
        settings: TrainingSettings,
        ranks: Ranks,
    ) -> None:
        self._module = module
        self._wrapped = ranks.prepare(module)
        self._teacher = teacher
        self._optimizer = optimizer
        self._settings = settings
        self._ranks = ranks

    def step(
        self, window: Window, *, t: float | None, stop_requested: Callable[[], bool]
    ) -> StepTotals:
        """One optimiser step.

        Args:
            stop_requested: asked once all of the step's work is done but the move itself.

        Raises:
            NumericsError: the loss or a gradient is not finite. The weights have not moved.
        """
        self._wrapped.train()
        comparisons: list[Comparison] = []
        for index, micro_batch in enumerate(window.micro_batches):
            last = index == len(window.micro_batches) - 1
            with self._ranks.accumulating(self._wrapped, last=last):
                comparison = self._compare(self._wrapped, micro_batch, window, t)
                self._ranks.backward(comparison.share)
            comparisons.append(replace(comparison, share=comparison.share.detach()))
        totals = self._totals(comparisons, stop_requested=stop_requested())
        loss, moved = totals[0], totals[1]
        if not loss.isfinite():
            raise self._blame(window, comparisons)
        grad_norm = self._ranks.clip(self._wrapped, self._settings.max_grad_norm)
        if not torch.tensor(grad_norm).isfinite():
            raise self._blame_gradient(window)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        measured = comparisons[0].moved_cross_entropy is not None
        return StepTotals(
            loss=float(loss),
            grad_norm=grad_norm,
            num_tokens=int(window.num_tokens),
            moved_cross_entropy=float(moved) if measured else None,
            stop_requested=bool(totals[2] > 0),
        )

    @torch.no_grad()
    def loss(self, window: Window, *, t: float | None) -> float:
        """The same mean as a step's, in evaluation mode, moving nothing."""
        was_training = self._module.training
        self._module.eval()
        try:
            # Nothing flows backwards here, so the ranks need not meet inside the module.
            found = [self._compare(self._module, m, window, t) for m in window.micro_batches]
        finally:
            self._module.train(was_training)
        return float(self._totals(found, stop_requested=False)[0])

    def _compare(
        self, module: nn.Module, micro_batch: MicroBatch, window: Window, t: float | None
    ) -> Comparison:
        batch = micro_batch.batch
        weights = token_weights(
            batch.loss_mask,
            batch.row_of,
            reduction=self._settings.reduction,
            num_tokens=window.num_tokens,
            num_rows=window.num_rows,
        )
        comparison = module(batch, self._target(batch), weights, t)
        assert isinstance(comparison, Comparison)  # noqa: S101  modules are not typed
        return comparison

    def _target(self, batch: TokenBatch) -> Target:
        if self._teacher is None:
            return _labels_only(batch, self._module.student.head)
        return self._teacher.score(batch)

    def _totals(self, comparisons: list[Comparison], *, stop_requested: bool) -> Float[Tensor, "3"]:
        zero = torch.zeros((), device=self._ranks.device)
        shares = [c.share.detach() for c in comparisons]
        moved = [
            zero if c.moved_cross_entropy is None else c.moved_cross_entropy for c in comparisons
        ]
        stop = zero + float(stop_requested)
        here = [torch.stack(shares).sum(), torch.stack(moved).sum(), stop]
        return self._ranks.total(torch.stack([value.double() for value in here]))

    def _blame(self, window: Window, comparisons: list[Comparison]) -> NumericsError:
        """Name the rows without a finite loss, and the model whose numbers they have."""
        names: list[str] = []
        culprit = ""
        for micro_batch, comparison in zip(window.micro_batches, comparisons, strict=True):
            batch = micro_batch.batch
            broken = ~comparison.per_token.isfinite() & batch.loss_mask
            rows: list[int] = batch.row_of[broken].unique().tolist()
            names += [micro_batch.name(row) for row in rows]
            if rows and not culprit:
                culprit = self._culprit(batch)
        if not names:
            return NumericsError(
                "The loss is not finite on another process of this run; it must be finite. "
                "Read its message."
            )
        return NumericsError(
            f"The loss is not finite for {len(names)} row(s) ({_some(names)}): {culprit}. "
            "It must be finite. The weights have not moved and the last checkpoint is untouched: "
            "lower training.learning_rate, or look at those rows."
        )

    @torch.no_grad()
    def _culprit(self, batch: TokenBatch) -> str:
        if not bool(self._module.hidden(batch).isfinite().all()):
            return "the student's hidden states are nan or infinite"
        target = self._target(batch)
        answer = _numbers(target)
        # Logits may rule entries out by -inf; nothing else may be there.
        if bool((answer.isnan() | (answer == torch.inf)).any()):
            return "the teacher's answer is nan or infinite"
        return "both models' answers are finite, but their divergence is not"

    def _blame_gradient(self, window: Window) -> NumericsError:
        named = self._module.student.named_parameters()
        broken = [n for n, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
        rows = [m.name(row) for m in window.micro_batches for row in range(m.batch.num_rows)]
        return NumericsError(
            f"The student's gradient is not finite in {len(broken)} weight(s), the first "
            f"{broken[0] if broken else 'unknown'}, though the loss is; rows {_some(rows)}. "
            "It must be finite. The weights have not moved and the last checkpoint is untouched: "
            "lower training.learning_rate, or look at those rows."
        )


def _labels_only(batch: TokenBatch, head: Head) -> LogitsTarget:
    # No objective that reads labels alone looks at these scores: one zero, seen V times over.
    num_entries = head.weight.shape[0] if head.num_real is None else head.num_real
    scores = batch.labels.new_zeros((1, 1), dtype=torch.float32)
    return LogitsTarget(
        logits=scores.expand(batch.labels.shape[0], num_entries), labels=batch.labels
    )


def _numbers(target: Target) -> Tensor:
    match target:
        case HiddenTarget(hidden=numbers) | LogitsTarget(logits=numbers):
            return numbers
        case TopKTarget(logp=numbers) | SampledTarget(weights=numbers):
            return numbers
        case SeveralTarget(members=members):
            return torch.cat([one.hidden.flatten() for one in members])


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
