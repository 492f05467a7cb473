"""Minus a policy's surrogate, with its true value and its gradient through the fused loss."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.core.targets import Target
from tutelage.objectives import Objective, PolicyGradient, token_advantages
from tutelage.objectives.policies import DrawnTokens, Policy, log_router_drift
from tutelage.routing import routing_shift
from tutelage.training.policy.measures import measured
from tutelage.training.policy.old import OldTokens
from tutelage.training.policy.routers import Tap, WatchRouters


@final
@dataclass(frozen=True, kw_only=True)
class Distilled:
    """The completions of a micro-batch that the teacher was asked about."""

    at: Bool[Tensor, " N"]
    """Their tokens among those of the micro-batch."""
    batch: TokenBatch
    """They alone: M tokens."""
    target: Target
    weights: Float[Tensor, " M"]
    """What each token's nats weigh in the mean over the step's distilled rows."""


@final
@dataclass(frozen=True, kw_only=True)
class PolicyShare:
    """What one micro-batch gave."""

    share: Float[Tensor, ""]
    """Of the step's mean of -J; differentiable."""
    per_token: Float[Tensor, " N"]
    """-J of each token, without gradient."""
    sums: Float[Tensor, "6"]
    """See `MEASURES`."""
    highest_ratio: Float[Tensor, ""]


@final
class PolicyLoss:
    """A policy, and what it needs to know of the tokens it looks at.

    Args:
        sampled_at: the temperature that completions are drawn at.
        routers: listens to the student's routers; None for a student without.
    """

    def __init__(self, policy: Policy, *, sampled_at: float, routers: WatchRouters | None) -> None:
        self.policy = policy
        self.drawn = PolicyGradient(temperature=sampled_at)
        self._routers = routers

    @contextmanager
    def watching(self, old: OldTokens | None) -> Generator[Tap | None]:
        """For one forward pass of the student over these tokens.

        Args:
            old: what is replayed of them, where the policy asks for it.
        """
        if self._routers is None:
            yield None
            return
        with self._routers(old.routes if old is not None and old.routes else None) as tap:
            yield tap

    def share(
        self,
        batch: TokenBatch,
        now: OldTokens,
        old: OldTokens | None,
        weights: Float[Tensor, " N"],
        steer: Callable[[Objective, Float[Tensor, " N"]], Float[Tensor, ""]],
    ) -> PolicyShare:
        """This micro-batch's part of the step's mean of -J.

        Args:
            now: the tokens under the student as it is.
            old: under the student that drew them; None where that is the same.
            steer: the weighted sum of an objective's nats, differentiable.
        """
        old = now if old is None else old
        shift = routing_shift(now.probabilities, old.probabilities) if now.probabilities else None
        tokens = DrawnTokens(
            logp=now.logp,
            old_logp=old.logp,
            advantages=token_advantages(batch),
            loss_mask=batch.loss_mask,
            row_of=batch.row_of,
            drift=self._drift(now, old, shift),
        )
        found = self.policy.surrogate(tokens)
        # A weight of 0 means left out, whatever stands there.
        value = torch.where(weights != 0, found.value.double() * weights.double(), 0.0).sum()
        slope = torch.where(weights != 0, found.slope * weights, 0.0)
        steered = steer(self.drawn, slope)
        return PolicyShare(
            # The value is J's own; the gradient that of slope * log student.
            share=steered - steered.detach() - value.to(steered.dtype),
            per_token=-found.value,
            sums=measured(tokens, found, shift),
            highest_ratio=torch.where(batch.loss_mask, found.ratio, 0.0).amax()
            if len(weights)
            else weights.new_zeros(()),
        )

    def _drift(
        self, now: OldTokens, old: OldTokens, shift: Float[Tensor, " N"] | None
    ) -> Float[Tensor, " N"] | None:
        match self.policy.drift:
            case "none":
                return None
            case "probabilities":
                return shift
            case "log_ratio":
                return log_router_drift(now.probabilities, old.probabilities, old.chosen)
