"""Policies in which every token has a ratio and a clip of its own."""

from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import ConfigError
from tutelage.objectives.policies.policy import (
    DrawnTokens,
    Drift,
    Policy,
    Surrogate,
    clipped_surrogate,
)
from tutelage.objectives.reduce import Reduction


class TokenRatioPolicy(Policy):
    """min(ratio * A, clip(ratio) * A) for every token."""

    clip_low: Annotated[float, Gt(0), Le(1)] = 0.2
    """A ratio below 1 minus this is no reason to push a token of negative advantage further down.
    1 never clips there."""

    clip_high: Annotated[float, Gt(0)] = 0.2
    """A ratio above 1 plus this is no reason to pull a token of positive advantage further up."""

    @override
    def surrogate(self, tokens: DrawnTokens) -> Surrogate:
        return clipped_surrogate(
            tokens.log_ratio.exp(), tokens.advantages, low=self.clip_low, high=self.clip_high
        )


@final
class Grpo(TokenRatioPolicy):
    """Group-relative policy optimisation: a clipped ratio for every token.

        J = mean of min(r A, clip(r, 1 - low, 1 + high) A),   r = student(y) / old student(y)

    `training.reduction: sequence_mean` is the paper's mean over completions of the mean over
    their tokens; `token_mean`, with `clip_high: 0.28`, is DAPO. No KL to a reference model.

    Source: Shao et al. 2024 (GRPO), arXiv:2402.03300; Yu et al. 2025 (DAPO), arXiv:2503.14476.
    """

    kind: Literal["grpo"] = "grpo"


@final
class DrGrpo(TokenRatioPolicy):
    """GRPO whose sums over tokens are divided by one constant, whatever a completion's length.

    With `advantages.normalise: none` it has neither of GRPO's two biases.

    Source: Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783.
    """

    kind: Literal["dr_grpo"] = "dr_grpo"

    length: PositiveInt | None = None
    """Tokens that a completion's sum is divided by; null: rollouts.max_completion_tokens."""

    @override
    def token_weights(
        self,
        loss_mask: Bool[Tensor, " N"],
        row_of: Int[Tensor, " N"],
        *,
        reduction: Reduction,
        num_tokens: int | Int[Tensor, ""],
        num_rows: int | Int[Tensor, ""],
    ) -> Float[Tensor, " N"]:
        """1 / (rows * length) for every trained token; the reduction plays no part."""
        if self.length is None:
            raise ConfigError(
                "policy.length is null; it must be a number of tokens outside of recipes. Give "
                "the longest completion that may be drawn."
            )
        rows = num_rows.clamp(min=1) if isinstance(num_rows, Tensor) else max(num_rows, 1)
        return loss_mask.to(torch.float32) / (rows * self.length)


@final
class PrGrpo(TokenRatioPolicy):
    """GRPO that follows bad completions less, the further the routers have moved since.

        r^ = r * exp(-suppression * shift) where A < 0, and r elsewhere, before the clip

    The shift is the mean over layers of the distance between the routers' probabilities now and
    when the completion was drawn. It is held still: were it trained, a step would move the
    routers of bad completions further, for that raises J. It is 0 on the first step of a batch,
    so with one step for each batch this is `grpo`.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equations 7 to 9.
    """

    kind: Literal["pr_grpo"] = "pr_grpo"

    suppression: Annotated[float, Ge(0)] = 0.1
    """How much a shift of 1 takes from the logarithm of the ratio (lambda in the paper). 0 is
    `grpo`."""

    @property
    @override
    def drift(self) -> Drift:
        return "probabilities" if self.suppression else "none"

    @override
    def surrogate(self, tokens: DrawnTokens) -> Surrogate:
        ratio = tokens.log_ratio.exp()
        if tokens.drift is not None:
            suppressed = ratio * torch.exp(-self.suppression * tokens.drift.detach())
            ratio = torch.where(tokens.advantages < 0, suppressed, ratio)
        return clipped_surrogate(ratio, tokens.advantages, low=self.clip_low, high=self.clip_high)
