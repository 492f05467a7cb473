"""The student and its loss, as one module that ranks can wrap."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from tutelage.core.crossing import Coverage
from tutelage.core.records import TokenBatch
from tutelage.core.targets import OtherVocabularyTarget, SeveralTarget, Target
from tutelage.models.causal_lm import CausalLM
from tutelage.models.routers import checkpointing_options
from tutelage.objectives import Move, NoMove, Objective, PolicyGradient, Taid, token_advantages
from tutelage.objectives.fused import FusedOptions, fused_loss, fused_per_token, labels_only
from tutelage.objectives.groupwise import groupwise_loss, groupwise_per_token
from tutelage.objectives.plain import plain_per_token
from tutelage.objectives.policies import Policy
from tutelage.training.losses.drift import Drift, drift_of
from tutelage.training.losses.measured import MeasuredMove
from tutelage.training.policy import Distilled, OldTokens, PolicyLoss, PolicyShare, WatchRouters
from tutelage.training.routers import RouterOwner
from tutelage.training.settings import TrainingSettings


@final
@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the completions of a run are drawn, and what is made of their rewards."""

    sampled_at: float = 1.0
    """The temperature, for ratios and importance weights."""
    policy: Policy | None = None
    routers: WatchRouters | None = None


_DRAWING = Drawing()


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
    policy: PolicyShare | None = None
    """Of a step that learns from rewards by a policy."""
    drift: Drift | None = None
    """How far the student is from who drew the tokens, where that is measured."""
    coverage: Coverage | None = None
    """How much could be compared, where the teacher has another tokenizer."""
    row_shares: Mapping[str, float] | None = None
    """What each of several teachers counted, where a router weighs them."""


@final
class LossModule(nn.Module):
    """The student and its loss in one module, so that what is wrapped for DDP is what is called.

    Where an adaptive clock listens to it, the cross-entropy to the moved target is measured too:
    a second softmax of each row, and no matmul.

    Args:
        drawing: with a policy, rewards are learned from by ratios, and the objective beside them.
    """

    def __init__(
        self,
        student: CausalLM,
        objective: Objective,
        settings: TrainingSettings,
        *,
        move: Move,
        drawing: Drawing = _DRAWING,
    ) -> None:
        super().__init__()
        self.student = student
        sampled_at, policy = drawing.sampled_at, drawing.policy
        self.policy = policy and PolicyLoss(policy, sampled_at=sampled_at, routers=drawing.routers)
        if settings.gradient_checkpointing:
            student.model.activation_checkpointing_enable(checkpointing_options(student))
        self.routers: RouterOwner | None = None
        """Hears the student's routers while it trains; the stepper's."""
        self._objective = objective
        self._move = None if isinstance(move, NoMove) else move
        self._measure_moved = isinstance(move, Taid) and move.schedule == "adaptive"
        self._weighting = settings.weighting
        self._sampled_at = sampled_at
        self._measures_drift = bool(settings.measure_drift)
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
        old: OldTokens | None = None,
        distilled: Distilled | None = None,
    ) -> Comparison:
        """Compare the student with the target on every token of the batch.

        With a policy, the target is of labels alone and the teacher's stands in `distilled`.
        """
        if self.policy is None:
            compared = self._compared(self.hidden(batch), batch, target, weights, t)
        else:
            compared = self._steered(batch, target, weights, t, (old, distilled))
        owner = self.routers if self.training else None
        extra = None if owner is None else owner.share(batch, weights)
        return compared if extra is None else replace(compared, share=compared.share + extra)

    def _steered(
        self,
        batch: TokenBatch,
        target: Target,
        weights: Float[Tensor, " N"],
        t: float | None,
        lesson: tuple[OldTokens | None, Distilled | None],
    ) -> Comparison:
        """The step of a policy, and what is distilled beside it."""
        assert self.policy is not None  # noqa: S101  the caller has looked
        old, distilled = lesson
        hidden, now = self._heard(batch, target, old)
        options = self._options

        def steer(objective: Objective, slopes: Float[Tensor, " N"]) -> Float[Tensor, ""]:
            return self._loss(hidden, target, objective, slopes, options)[0]

        written = now.logp if old is None else old.logp
        weighed = self._weighting.of_old_student(batch, weights, written)
        found = self.policy.share(batch, now, old, weighed, steer)
        share, per_token = found.share, found.per_token
        moved = share.detach() * 0 if self._measure_moved else None
        if distilled is not None:
            own, at = distilled, distilled.at
            taught = self._compared(hidden[at], own.batch, own.target, own.weights, t)
            share = share + self.policy.policy.distill_weight * taught.share
            # Whoever asks which rows are not finite must see both parts.
            per_token = per_token.index_put((at,), per_token[at] + taught.per_token)
            moved = taught.moved_cross_entropy
        # What is kept for the log must not keep the graph of its micro-batch.
        found = replace(found, share=found.share.detach())
        return Comparison(
            share=share,
            per_token=per_token,
            moved_cross_entropy=moved,
            policy=found,
            drift=drift_of(batch, now.logp) if self._measures_drift else None,
        )

    @torch.no_grad()
    def read(self, batch: TokenBatch) -> OldTokens:
        """What the student says of the batch's own tokens, and its routers at them."""
        return self._heard(batch, labels_only(batch.labels, self.student.head), None)[1]

    def _heard(
        self, batch: TokenBatch, labels: Target, old: OldTokens | None
    ) -> tuple[Float[Tensor, "N D"], OldTokens]:
        assert self.policy is not None  # noqa: S101  the callers have looked
        with self.policy.watching(old) as tap:
            hidden = self.hidden(batch)
        logp = -self._nats(hidden, labels, self.policy.drawn)
        with_routes = self.policy.policy.replay_routing
        return hidden, OldTokens.heard(batch, logp, tap, with_routes=with_routes)

    @torch.no_grad()
    def _nats(
        self,
        hidden: Float[Tensor, "N D"],
        target: Target,
        objective: Objective,
    ) -> Float[Tensor, " N"]:
        """Of each token by the unmoved target, without gradient."""
        head = self.student.head
        if isinstance(target, OtherVocabularyTarget):
            target = replace(target, bridge=self.student.bridge)
            return groupwise_per_token(hidden, head, target, objective, options=self._options)
        if self._fused:
            return fused_per_token(hidden, head, target, objective, options=self._options)
        return plain_per_token(hidden, head, target, objective, self._options)

    def _compared(
        self,
        hidden: Float[Tensor, "N D"],
        batch: TokenBatch,
        target: Target,
        weights: Float[Tensor, " N"],
        t: float | Float[Tensor, " N"] | None,
    ) -> Comparison:
        measured = MeasuredMove(inner=self._move) if self._move and self._measure_moved else None
        if self._move is not None and self._move.by_advantage:
            t = token_advantages(batch)
        options = replace(self._options, move=measured or self._move, t=t)

        def unmoved(objective: Objective) -> Float[Tensor, " N"]:
            return self._nats(hidden, target, objective)

        weighed = self._weighting.weighed(
            batch, weights, self._objective, sampled_at=self._sampled_at, per_token=unmoved
        )
        drift = None
        if self._measures_drift:
            drift = drift_of(batch, -unmoved(PolicyGradient(temperature=self._sampled_at)))
        returns = self._weighting.returns(batch, self._objective, per_token=unmoved)
        if returns is not None:
            weighed_returns = -returns.to_go * weighed
            steered, _ = self._loss(hidden, target, returns.drawn, weighed_returns, options)
            # The value is that of the costs, as without returns; the gradient is the returns'.
            share = (returns.costs * weighed).sum() + steered - steered.detach()
            return Comparison(
                share=share, per_token=returns.costs, moved_cross_entropy=None, drift=drift
            )
        share, per_token = self._loss(hidden, target, self._objective, weighed, options)
        moved = None if measured is None else measured.mean(weighed)
        return Comparison(
            share=share,
            per_token=per_token,
            moved_cross_entropy=moved,
            drift=drift,
            coverage=target.coverage if isinstance(target, OtherVocabularyTarget) else None,
            row_shares=target.row_shares if isinstance(target, SeveralTarget) else None,
        )

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
        if isinstance(target, OtherVocabularyTarget):
            target = replace(target, bridge=self.student.bridge)
            result = groupwise_loss(
                hidden, head, target, objective, token_weights=weights, options=options
            )
            return result.loss, result.per_token
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
        device, owner = batch.labels.device.type, self.routers if self.training else None
        heard = nullcontext() if owner is None else owner.reading(batch)
        with torch.autocast(device, dtype=self._half, enabled=self._half is not None), heard:
            return self.student.hidden(batch.student)[batch.student.predicts]
