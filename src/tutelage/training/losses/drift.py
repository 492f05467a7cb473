"""How far the student's log-probabilities are from those that its tokens were drawn with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.training.ranks import Ranks


@final
@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one micro-batch, in numbers that can be added up; nothing here has a gradient."""

    sums: Float[Tensor, "3"]
    """Trained tokens that somebody drew, |gap| over them, and the KL estimate over them."""
    highest: Float[Tensor, ""]
    """The largest |gap|."""


@torch.no_grad()
def drift_of(batch: TokenBatch, student_logp: Float[Tensor, " N"]) -> Drift:
    """Over the trained tokens of this micro-batch, with gap = log student - log sampler.

    The KL from the sampler to the student is estimated by exp(gap) - 1 - gap, which is never
    negative and on average right over tokens that the sampler drew.

    Args:
        student_logp: at the temperature that the tokens were drawn at.

    Source: Schulman 2020, "Approximating KL divergence" (k3).
    """
    drawn = batch.sampled_logp
    if drawn is None:
        nothing = student_logp.new_zeros(3, dtype=torch.float64)
        return Drift(sums=nothing, highest=nothing[0])
    counted = batch.loss_mask & drawn.isfinite()
    gap = torch.where(counted, student_logp.double() - drawn.double(), 0.0)
    kl = torch.expm1(gap) - gap
    sums = torch.stack([counted.sum().double(), gap.abs().sum(), kl.sum()])
    return Drift(sums=sums, highest=torch.cat([gap.abs(), gap.new_zeros(1)]).amax())


def drift_numbers(found: Sequence[Drift], ranks: Ranks) -> Mapping[str, float]:
    """For the log, over all micro-batches and ranks; nothing where no token was drawn.

    All ranks call it alike.
    """
    if not found:
        return {}
    total: list[float] = ranks.total(torch.stack([one.sums for one in found]).sum(dim=0)).tolist()
    highest = ranks.highest(torch.stack([one.highest for one in found]).amax())
    num_tokens, gaps, kl = total
    if not num_tokens:
        return {}
    return {
        "engine_drift": gaps / num_tokens,
        "engine_drift_max": float(highest),
        "engine_kl": kl / num_tokens,
    }
