"""Policies whose ratio belongs to the whole completion: arithmetic on means of log-ratios."""

from typing import Annotated, Literal, final

import torch
from annotated_types import Gt, Le
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.objectives.policies.policy import (
    DrawnTokens,
    Drift,
    Policy,
    Surrogate,
    clipped_surrogate,
)


@final
class Gspo(Policy):
    """One ratio for a completion, length-normalised, and one clip.

        s = exp(mean over tokens of log r),   J = min(s A, clip(s, 1 - low, 1 + high) A)

    Every token of the row has the row's J and slope s A, so that under `sequence_mean` the
    gradient is exactly that of the sequence's own J.

    Source: Zheng et al. 2025 (GSPO), arXiv:2507.18071.
    """

    kind: Literal["gspo"] = "gspo"

    clip_low: Annotated[float, Gt(0), Le(1)] = 3e-4
    """How far below 1 the ratio of a bad completion may fall before it is left alone."""

    clip_high: Annotated[float, Gt(0)] = 4e-4
    """How far above 1 the ratio of a good completion may rise before it is left alone."""

    @override
    def surrogate(self, tokens: DrawnTokens) -> Surrogate:
        ratio = tokens.row_means(tokens.log_ratio).exp()
        return clipped_surrogate(ratio, tokens.advantages, low=self.clip_low, high=self.clip_high)


class GeometricPolicy(Policy):
    """exp(mean over tokens of their clipped log-ratios) * A."""

    clip: Annotated[float, Gt(0)] = 0.4
    """How far the log-ratio of a token may go in the direction that its advantage asks for."""

    def clipped_log_ratio(
        self, log_ratio: Float[Tensor, " N"], advantages: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Tensor]:
        """sign(A) * min(sign(A) l, sign(A) clip(l)), and where that holds l back."""
        sign = torch.where(advantages < 0, -1.0, 1.0)
        held = log_ratio.clamp(-self.clip, self.clip)
        clipped = sign * held < sign * log_ratio
        return torch.where(clipped, held, log_ratio), clipped

    def geometric(
        self, tokens: DrawnTokens, log_terms: Float[Tensor, " N"], clipped: Tensor
    ) -> Surrogate:
        """The row's J for each of its tokens; held tokens add to it and have no slope."""
        ratio = tokens.row_means(log_terms).exp()
        value = ratio * tokens.advantages
        # Where A is 0 nothing flows anyway, and nothing was held back from it.
        clipped = clipped & (tokens.advantages != 0)
        return Surrogate(
            value=value, slope=torch.where(clipped, 0.0, value), ratio=ratio, clipped=clipped
        )


@final
class Gmpo(GeometricPolicy):
    """The geometric mean of a completion's ratios, each clipped by itself, times the advantage.

        J = exp(mean over tokens of clip(log r, -c, c)) * A

    One-sided, as in PPO: only what would raise J further is clipped.

    Source: Zhao et al. 2025 (GMPO), arXiv:2507.20673.
    """

    kind: Literal["gmpo"] = "gmpo"

    @override
    def surrogate(self, tokens: DrawnTokens) -> Surrogate:
        return self.geometric(tokens, *self.clipped_log_ratio(tokens.log_ratio, tokens.advantages))


@final
class Rspo(GeometricPolicy):
    """GMPO whose ratios shrink, the more the routers have changed their mind about old experts.

        w = max(exp(-drift), lowest),   log w joins log r;   w is held still

    The drift of a token is the mean over layers and over the experts chosen when it was drawn of
    |log router now - log router then|.

    Source: Zhang et al. 2025 (RSPO), arXiv:2510.23027, by secondary accounts. They disagree on
    whether w is multiplied in before the clip (its second version) or after it (its first).
    """

    kind: Literal["rspo"] = "rspo"

    lowest: Annotated[float, Gt(0), Le(1)] = 0.8
    """The smallest w (gamma_min in the paper); 1 is `gmpo`."""

    shrink: Literal["before_clip", "after_clip"] = "before_clip"
    """Whether the clip sees the ratio with its w, or without."""

    @property
    @override
    def drift(self) -> Drift:
        return "log_ratio"

    @override
    def surrogate(self, tokens: DrawnTokens) -> Surrogate:
        drift = torch.zeros_like(tokens.logp) if tokens.drift is None else tokens.drift.detach()
        log_w = torch.exp(-drift).clamp(min=self.lowest).log()
        if self.shrink == "before_clip":
            terms, clipped = self.clipped_log_ratio(tokens.log_ratio + log_w, tokens.advantages)
            return self.geometric(tokens, terms, clipped)
        terms, clipped = self.clipped_log_ratio(tokens.log_ratio, tokens.advantages)
        return self.geometric(tokens, terms + log_w, clipped)
