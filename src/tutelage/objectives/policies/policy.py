"""What a policy objective is: settings that turn ratios and advantages into a surrogate.

A surrogate J is to be raised. Its gradient is that of sum_n slope[n] * log student(y_n) with the
slopes held still, so whoever can weigh `policy_gradient` token by token can train it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Gt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.core.settings import Settings
from tutelage.objectives.reduce import Reduction, token_weights

Distill = Literal["random", "best", "all"]

Drift = Literal["none", "probabilities", "log_ratio"]
"""What a policy asks about the routers since the completions were drawn: nothing, how far their
probabilities have moved, or by what factor those of the experts that were chosen."""


@final
@dataclass(frozen=True, kw_only=True)
class DrawnTokens:
    """The N completion tokens of a micro-batch, as a policy looks at them; nothing has gradients.

    Both log-probabilities are at the temperature that the tokens were drawn at.
    """

    logp: Float[Tensor, " N"]
    """Under the student as it is."""
    old_logp: Float[Tensor, " N"]
    """Under the student that drew them."""
    advantages: Float[Tensor, " N"]
    """Each token's row's, within its group."""
    loss_mask: Bool[Tensor, " N"]
    row_of: Int[Tensor, " N"]
    drift: Float[Tensor, " N"] | None = None
    """How far the routers have moved, in the policy's own measure; None where it asks for none."""

    @property
    def log_ratio(self) -> Float[Tensor, " N"]:
        """How much likelier each token has become, as a logarithm; 0 where nothing is trained."""
        return torch.where(self.loss_mask, self.logp - self.old_logp, 0.0)

    def row_means(self, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """For each token, the mean of its row's trained tokens."""
        row = self.row_of.long()
        num_rows = int(row.max()) + 1 if row.numel() else 0
        kept = torch.where(self.loss_mask, values, 0.0)
        sums = values.new_zeros(num_rows).index_add(0, row, kept)
        lengths = values.new_zeros(num_rows).index_add(0, row, self.loss_mask.to(values.dtype))
        return (sums / lengths.clamp(min=1))[row]


@final
@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A policy's value and gradient, token by token; nothing here carries a gradient itself."""

    value: Float[Tensor, " N"]
    """J of each token; a policy of whole completions gives all tokens of a row the same."""
    slope: Float[Tensor, " N"]
    """d J / d log student(y_n); 0 where the clip holds the token."""
    ratio: Float[Tensor, " N"]
    """student / old student, as the clip sees it: of the token or of its row."""
    clipped: Bool[Tensor, " N"]
    """Whether the clip took the token's gradient away."""


class Policy(Settings, ABC):
    """One member of `PolicySettings`, told apart by its `kind`."""

    distill_weight: Annotated[float, Gt(0)] = 0.5
    """What the objective's comparison with the teacher counts beside the rewards. Without meaning
    where the objective is `policy_gradient`, which asks no teacher."""

    distill: Distill = "random"
    """Which completions of a prompt the teacher is asked about: one by lot, the one with the
    highest reward (the first of equals), or `all`."""

    replay_routing: bool = False
    """On a mixture of experts, send every token to the experts that the old student chose for it;
    only their gates are of now, and learn (R2). Otherwise routing is the student's own."""

    @property
    def drift(self) -> Drift:
        """What it asks about the routers."""
        return "none"

    @property
    def needs_routers(self) -> bool:
        """Whether it has no meaning for a dense student."""
        return self.replay_routing or self.drift != "none"

    @abstractmethod
    def surrogate(self, tokens: DrawnTokens) -> Surrogate:
        """Value and slope of every token, before any mean."""

    def token_weights(
        self,
        loss_mask: Bool[Tensor, " N"],
        row_of: Int[Tensor, " N"],
        *,
        reduction: Reduction,
        num_tokens: int | Int[Tensor, ""],
        num_rows: int | Int[Tensor, ""],
    ) -> Float[Tensor, " N"]:
        """What each token's J weighs in the step's mean."""
        return token_weights(
            loss_mask, row_of, reduction=reduction, num_tokens=num_tokens, num_rows=num_rows
        )


def clipped_surrogate(
    ratio: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    *,
    low: float,
    high: float,
) -> Surrogate:
    """min(ratio * A, clip(ratio, 1 - low, 1 + high) * A), where d ratio / d log student = ratio.

    The slope is ratio * A where the first of the two is no larger, and 0 where the clip holds.

    Source: Schulman et al. 2017 (PPO), arXiv:1707.06347, equation 7.
    """
    free, held = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    clipped = held < free
    return Surrogate(
        value=torch.where(clipped, held, free),
        slope=torch.where(clipped, 0.0, free),
        ratio=ratio,
        clipped=clipped,
    )
