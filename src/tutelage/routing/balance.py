"""How a bias on the router's scores is moved: towards even load, and towards what was rewarded."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Sign = Literal["intended", "literal"]
"""`intended` lowers the bias of a busy expert. `literal` raises it, as equation 11 is printed: it
makes the busy busier, and is here so that the printed rule can be looked at."""


def advantage_sums(
    chosen: Int[Tensor, "L K"],
    advantages: Float[Tensor, " L"],
    *,
    num_experts: int,
    counted: Bool[Tensor, " L"],
) -> Float[Tensor, " E"]:
    """The advantages of the tokens sent to each expert, added up over (token, slot) pairs.

    Args:
        counted: True for the tokens that count; the others may have any advantage, nan included.
    """
    kept = advantages[counted].double()
    each = kept[:, None].expand(-1, chosen.shape[1]).flatten()
    sums = torch.zeros(num_experts, dtype=torch.float64, device=chosen.device)
    return sums.index_add_(0, chosen[counted].flatten(), each)


def expert_advantage(
    sums: Float[Tensor, "*layer E"], counts: Float[Tensor, "*layer E"]
) -> Float[Tensor, "*layer E"]:
    """A_j: the mean advantage of what an expert was given; 0 for one that was given nothing."""
    return sums / counts.clamp(min=1)


def moving_average(
    before: Float[Tensor, "*layer E"], new: Float[Tensor, "*layer E"], *, weight: float
) -> Float[Tensor, "*layer E"]:
    """EMA_u = weight * new + (1 - weight) * EMA_(u-1), from 0.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equation 10.
    """
    return weight * new + (1 - weight) * before


def without_start(
    average: Float[Tensor, "*layer E"], *, weight: float, num_updates: int
) -> Float[Tensor, "*layer E"]:
    """The average as if it had not begun at 0: EMA_u / (1 - (1 - weight)^u).

    Of a constant it is that constant from the first update on.

    Args:
        num_updates: u, from 1.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, appendix A.7.
    """
    return average / (1 - (1 - weight) ** num_updates)


def moved_bias(
    bias: Float[Tensor, "*layer E"],
    load: Float[Tensor, "*layer E"],
    advantage: Float[Tensor, "*layer E"],
    *,
    balance_rate: float,
    reward_rate: float,
    sign: Sign = "intended",
) -> Float[Tensor, "*layer E"]:
    """The bias after one update.

        intended   b_j - balance_rate * (f_j - 1/E) + reward_rate * A_j
        literal    b_j + balance_rate * (f_j - 1/E) + reward_rate * A_j

    Even load and no advantage move nothing. The advantage is integrated: with the intended sign
    the load comes to rest at 1/E + (reward_rate / balance_rate) * A_j, which an advantage of a
    hundredth can make twice the fair share where there are many experts; see `capped`.

    Args:
        load: shares that add up to 1 in each layer; see `expert_load`.
        advantage: of the experts, its moving average.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equation 11 (eta, gamma).
    """
    above = load - 1 / load.shape[-1]
    towards = -above if sign == "intended" else above
    return bias + (balance_rate * towards + reward_rate * advantage).to(bias.dtype)


def capped(bias: Float[Tensor, "*layer E"], *, most: float) -> Float[Tensor, "*layer E"]:
    """The bias less its mean, which no softmax notices, and at most so far from 0."""
    return (bias - bias.mean(dim=-1, keepdim=True)).clamp(-most, most)


def loss_free_bias(
    bias: Float[Tensor, "*layer E"], counts: Float[Tensor, "*layer E"], *, rate: float
) -> Float[Tensor, "*layer E"]:
    """One update of a bias that takes part in the choice of experts only, never in their gates.

        b_j + rate * sign(mean count - count_j)

    Several accounts print the error the other way round, which unbalances.

    Source: Wang et al. 2024 (Loss-Free Balancing), arXiv:2408.15664, algorithm 1 (u).
    """
    error = counts.mean(dim=-1, keepdim=True) - counts
    return bias + rate * torch.sign(error).to(bias.dtype)
