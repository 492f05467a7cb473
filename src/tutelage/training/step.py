"""One optimiser step: score, compare, go backwards, clip, move the student's weights once."""

from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.core.crossing import Coverage
from tutelage.core.errors import NumericsError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import (
    HiddenTarget,
    LogitsTarget,
    OtherVocabularyTarget,
    SampledTarget,
    SeveralTarget,
    Target,
    TopKTarget,
)
from tutelage.objectives.fused import labels_only
from tutelage.objectives.reduce import token_weights
from tutelage.teachers.teacher import Teacher
from tutelage.training.collect import MicroBatch, Window
from tutelage.training.losses import Comparison, LossModule, drift_numbers, share_numbers
from tutelage.training.metrics import StepTotals
from tutelage.training.policy import MEASURES, Distilled, OldTokens, named_measures
from tutelage.training.ranks import Ranks
from tutelage.training.routers import RouterOwner
from tutelage.training.settings import TrainingSettings

_NAMED = 5
"""Rows that an error message names, of those it counts."""


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
        routers: RouterOwner | None = None,
    ) -> None:
        module.routers = self._routers = routers
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
            if self._routers is not None:
                self._routers.coming(micro_batch.rollouts, rank=self._ranks.rank)
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
        routers = {} if self._routers is None else self._routers.move(self._ranks)
        measured = comparisons[0].moved_cross_entropy is not None
        drifts = [c.drift for c in comparisons if c.drift is not None]
        return StepTotals(
            loss=float(loss),
            grad_norm=grad_norm,
            num_tokens=int(window.num_tokens),
            moved_cross_entropy=float(moved) if measured else None,
            stop_requested=bool(totals[2] > 0),
            routers=routers,
            measures={
                **self._measures(comparisons, window, float(loss)),
                **drift_numbers(drifts, self._ranks),
            },
        )

    def read(self, batch: TokenBatch) -> OldTokens:
        """What the student says of its own tokens before it moves; without dropout."""
        was_training = self._module.training
        self._module.eval()
        try:
            return self._module.read(batch)
        finally:
            self._module.train(was_training)

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
        batch, policy = micro_batch.batch, self._module.policy
        weights = (token_weights if policy is None else policy.policy.token_weights)(
            batch.loss_mask,
            batch.row_of,
            reduction=self._settings.reduction,
            num_tokens=window.num_tokens,
            num_rows=window.num_rows,
        )
        if policy is None:
            comparison = module(batch, self._target(batch), weights, t)
        else:
            labels = labels_only(batch.labels, self._module.student.head)
            distilled = self._distilled(micro_batch, window)
            comparison = module(batch, labels, weights, t, micro_batch.old, distilled)
        assert isinstance(comparison, Comparison)  # noqa: S101  modules are not typed
        return comparison

    def _distilled(self, micro_batch: MicroBatch, window: Window) -> Distilled | None:
        """The picked rows and what the teacher says of them; it is asked about no other."""
        picked = micro_batch.picked
        if self._teacher is None or picked is None or not bool(picked.any()):
            return None
        assert window.num_picked_tokens is not None  # noqa: S101  counted where rows are picked
        assert window.num_picked_rows is not None  # noqa: S101
        batch = micro_batch.only(picked)
        return Distilled(
            at=picked[micro_batch.batch.row_of],
            batch=batch,
            target=self._teacher.score(batch),
            weights=token_weights(
                batch.loss_mask,
                batch.row_of,
                reduction=self._settings.reduction,
                num_tokens=window.num_picked_tokens,
                num_rows=window.num_picked_rows,
            ),
        )

    def _measures(
        self, comparisons: list[Comparison], window: Window, loss: float
    ) -> Mapping[str, float]:
        """A policy's numbers over all micro-batches and ranks; nothing without one."""
        policy = self._module.policy
        found = [c.policy for c in comparisons if c.policy is not None]
        if policy is None or not found:
            shares = [c.row_shares for c in comparisons if c.row_shares is not None]
            return {**self._covered(comparisons), **share_numbers(shares, self._ranks)}
        rewards = torch.stack([one.share.double() for one in found]).sum()
        here = torch.cat([torch.stack([one.sums for one in found]).sum(dim=0), rewards[None]])
        sums = self._ranks.total(here)
        highest = self._ranks.highest(torch.stack([one.highest_ratio for one in found]).amax())
        numbers = dict(named_measures(sums[: len(MEASURES)], float(highest)))
        if self._teacher is not None:
            numbers["policy_loss"] = float(sums[-1])
        # A part that was cut by rows may hold none that the teacher is asked about.
        if window.num_picked_rows is not None and int(window.num_picked_rows):
            numbers["distill_loss"] = (loss - float(sums[-1])) / policy.policy.distill_weight
        return numbers

    def _covered(self, comparisons: list[Comparison]) -> Mapping[str, float]:
        """How much a teacher of another tokenizer could be compared on; nothing with others."""
        found = [c.coverage for c in comparisons if c.coverage is not None]
        if not found:
            return {}
        here = torch.tensor(astuple(sum(found, Coverage())), device=self._ranks.device)
        counts: list[int] = self._ranks.total(here).tolist()
        return Coverage.of(counts).numbers()

    def _target(self, batch: TokenBatch) -> Target:
        if self._teacher is None:
            return labels_only(batch.labels, self._module.student.head)
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


def _numbers(target: Target) -> Tensor:
    match target:
        case HiddenTarget(hidden=numbers) | LogitsTarget(logits=numbers):
            return numbers
        case TopKTarget(logp=numbers) | SampledTarget(weights=numbers):
            return numbers
        case OtherVocabularyTarget(teacher=one):
            return one.hidden
        case SeveralTarget(members=members):
            return torch.cat([one.hidden.flatten() for one in members])


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
