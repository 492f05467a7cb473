"""What a step's ratios were like, in sums that ranks and micro-batches can add up."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.policies import DrawnTokens, Surrogate

MEASURES = ("tokens", "clip_fraction", "ratio_mean", "approx_kl", "routing_shift", "watched")
"""Sums over trained tokens, in this order; the last counts the tokens whose routers were heard."""


@torch.no_grad()
def measured(
    tokens: DrawnTokens, found: Surrogate, shift: Float[Tensor, " N"] | None
) -> Float[Tensor, "6"]:
    """The sums of one micro-batch.

    The KL to the old student is estimated by exp(-l) - 1 + l of each log-ratio l, which is never
    negative and on average right over tokens that the old student drew.

    Source: Schulman 2020, "Approximating KL divergence" (k3).
    """
    mask, gap = tokens.loss_mask, tokens.log_ratio.double()
    num_tokens = mask.sum().double()
    sums = [
        num_tokens,
        (found.clipped & mask).sum().double(),
        torch.where(mask, found.ratio.double(), 0.0).sum(),
        (torch.expm1(-gap) + gap).sum(),
        num_tokens * 0 if shift is None else torch.where(mask, shift.double(), 0.0).sum(),
        num_tokens * 0 if shift is None else num_tokens,
    ]
    return torch.stack(sums)


def named_measures(sums: Float[Tensor, "6"], highest_ratio: float) -> Mapping[str, float]:
    """Means for the log, from sums over all micro-batches and ranks."""
    totals: dict[str, float] = dict(zip(MEASURES, sums.tolist(), strict=True))
    num_tokens, num_watched = max(totals["tokens"], 1.0), totals["watched"]
    numbers = {name: totals[name] / num_tokens for name in MEASURES[1:4]}
    numbers["ratio_max"] = highest_ratio
    if num_watched:
        numbers["routing_shift"] = totals["routing_shift"] / num_watched
    return numbers
