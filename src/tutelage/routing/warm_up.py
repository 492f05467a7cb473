"""How active experts are beside how active they should be, before routers are trained."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def activity_shares(
    mean_activity: Float[Tensor, "*layer E"], *, temperature: float
) -> Float[Tensor, "*layer E"]:
    """Shares that add up to 1: softmax(mean activity / temperature).

    Even as the temperature grows, all on one expert as it nears 0.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equation 2 (xi).
    """
    return (mean_activity / temperature).softmax(dim=-1)


def activity_loss(
    mean_activity: Float[Tensor, " E"],
    target_shares: Float[Tensor, " E"],
    *,
    temperature: float,
    active: Bool[Tensor, " E"],
) -> Float[Tensor, ""]:
    """KL( shares of the experts || their targets ) in nats: 0 where they are the same.

    Experts that were given no token say nothing of themselves: both sides are taken over the
    others, and their shares add up to 1 among those. A target of 0 is kept off 0, for a share
    that a softmax gives never gets there.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equation 4 (L_init).
    """
    scores = torch.where(active, mean_activity / temperature, -torch.inf)
    smallest = torch.finfo(target_shares.dtype).tiny
    wanted = torch.where(active, target_shares.clamp(min=smallest).log(), -torch.inf)
    # Where neither side has anything, a difference of two infinities would be nan.
    logp = scores.log_softmax(dim=-1)[active]
    return (logp.exp() * (logp - wanted.log_softmax(dim=-1)[active])).sum()
