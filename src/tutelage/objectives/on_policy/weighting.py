"""What each token of a completion weighs: which are left out, and how much the others count."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt
from torch import Tensor

from tutelage.core.errors import DataError
from tutelage.core.records import TokenBatch
from tutelage.core.settings import Settings
from tutelage.objectives.objective import Objective
from tutelage.objectives.on_policy.importance import (
    Outside,
    importance_weights,
    sequence_importance_weights,
)
from tutelage.objectives.on_policy.policy_gradient import PolicyGradient
from tutelage.objectives.on_policy.positions import position_weights, without_first, without_ids
from tutelage.objectives.on_policy.returns import return_to_go
from tutelage.objectives.on_policy.sampled_token import SampledToken

PerToken = Callable[[Objective], Tensor]
"""An objective's nats of each token of the batch, without gradient."""


@final
@dataclass(frozen=True, kw_only=True)
class Returns:
    """A sampled objective in which tokens answer for what follows them."""

    costs: Float[Tensor, " N"]
    """Nats of each token by itself: what is reported."""
    to_go: Float[Tensor, " N"]
    """Nats of each token and of what follows it."""
    drawn: PolicyGradient
    """Minus `to_go` times this has the gradient."""


@final
class ImportanceSettings(Settings):
    """Weigh a token by how much likelier it is now than when it was drawn.

    The student moves on while old completions wait in a replay buffer, or vLLM rounds otherwise
    than training does. A completion that is trained on at once, and was drawn by the same
    program, has ratios of 1, up to rounding.

    Beside a policy, whose own ratio tells how far the student has moved since it wrote, this one
    tells how far the student that wrote is from whoever drew for it: old student / sampler.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training" (truncated importance sampling); so in TRL and verl.
    """

    level: Literal["token", "sequence"] = "token"
    """Each token's own ratio, or the product over its completion for all of its tokens. A policy
    of whole completions (gspo, gmpo, rspo) needs the latter."""
    highest: Annotated[float, Gt(0)] = 2.0
    """The largest ratio that counts."""
    outside: Outside = "cap"
    """A larger one counts as the largest, or its tokens are left out."""


@final
class TokenWeighting(Settings):
    """Every token weighs the same, unless these say otherwise."""

    skip_first: NonNegativeInt = 0
    """Tokens at the beginning of each completion that are not trained."""
    skip_special: bool = False
    """Train none of the tokenizer's special tokens. The end of the completion is one, so the
    student no longer learns when to stop."""
    position_slope: Annotated[float, Ge(-1), Le(1)] = 0.0
    """Above 0, late tokens of a completion count for more; below 0, early ones."""
    return_discount: Annotated[float, Ge(0), Le(1)] | None = None
    """With `sampled_token`: a token answers for what follows it too, which counts so much less
    with each step (gamma). null or 0: for itself alone."""
    importance: ImportanceSettings | None = None
    """Correct for completions that an earlier student, or another program, drew; null does not."""

    def trained(self, batch: TokenBatch, special_ids: Collection[int]) -> Bool[Tensor, " N"]:
        """The batch's loss mask without the tokens that are left out."""
        mask = batch.loss_mask
        if self.skip_first:
            mask = without_first(mask, batch.offset_in_row, num_skipped=self.skip_first)
        if self.skip_special:
            mask = without_ids(mask, batch.labels, special_ids)
        return mask

    def placed(self, batch: TokenBatch, weights: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The weights by what each token's place in its completion makes of them."""
        if not self.position_slope:
            return weights
        slope = self.position_slope
        return weights * position_weights(batch.loss_mask, batch.row_of, slope=slope)

    @torch.no_grad()
    def weighed(
        self,
        batch: TokenBatch,
        weights: Float[Tensor, " N"],
        objective: Objective,
        *,
        sampled_at: float,
        per_token: PerToken,
    ) -> Float[Tensor, " N"]:
        """The weights with everything that these settings and the objective multiply them by.

        Args:
            sampled_at: the temperature that completions are drawn at.

        Raises:
            DataError: tokens of rows that lack what their weight is made from.
        """
        weights = self.placed(batch, weights)
        if isinstance(objective, PolicyGradient):
            weights = weights * token_advantages(batch)
        if self.importance is not None:
            now = -per_token(PolicyGradient(temperature=sampled_at))
            weights = weights * self._importance(batch, now)
        return weights

    @torch.no_grad()
    def of_old_student(
        self, batch: TokenBatch, weights: Float[Tensor, " N"], old_logp: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """The weights of a policy's tokens, whose ratio to the old student is not counted twice.

        Args:
            old_logp: under the student that wrote, by the trainer.

        Raises:
            DataError: tokens of rows that nobody drew.
        """
        weights = self.placed(batch, weights)
        if self.importance is None:
            return weights
        return weights * self._importance(batch, old_logp)

    @torch.no_grad()
    def returns(
        self, batch: TokenBatch, objective: Objective, *, per_token: PerToken
    ) -> Returns | None:
        """What each token answers for; None where it is for itself alone."""
        if not self.return_discount or not isinstance(objective, SampledToken):
            return None
        # Tokens that are not trained cost nothing, and nobody answers for them.
        costs = torch.where(batch.loss_mask, per_token(objective), 0.0)
        return Returns(
            costs=costs,
            to_go=return_to_go(costs, batch.row_of, discount=self.return_discount),
            drawn=PolicyGradient(temperature=objective.temperature),
        )

    def _importance(self, batch: TokenBatch, now: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        assert self.importance is not None  # noqa: S101  the callers have looked
        drawn = _of_rows(batch.sampled_logp, batch, "sampled log-probability", "Let a model write")
        now = torch.where(batch.loss_mask, now, drawn)
        highest, outside = self.importance.highest, self.importance.outside
        if self.importance.level == "token":
            return importance_weights(now, drawn, highest=highest, outside=outside)
        return sequence_importance_weights(
            now, drawn, batch.row_of, highest=highest, outside=outside
        )


def token_advantages(batch: TokenBatch) -> Float[Tensor, " N"]:
    """Each token's row's advantage, 0 where nothing is trained.

    Raises:
        DataError: a trained token has none.
    """
    return _of_rows(batch.advantages, batch, "advantage", "Give the recipe a reward")


def _of_rows(
    numbers: Float[Tensor, " N"] | None, batch: TokenBatch, what: str, advice: str
) -> Float[Tensor, " N"]:
    """The numbers, 0 where nothing is trained.

    Raises:
        DataError: a trained token has none.
    """
    if numbers is None or bool((numbers.isnan() & batch.loss_mask).any()):
        message = (
            f"A row of this step has no {what}; every trained row must have one. {advice}, and "
            "train on completions of the student alone."
        )
        raise DataError(message)
    return torch.where(batch.loss_mask, numbers, 0.0)
