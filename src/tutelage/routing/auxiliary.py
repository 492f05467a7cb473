"""Losses on the router's own output that spread tokens over experts: the older way to balance."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TINY = 1e-10
"""Keeps an importance of zero from dividing by zero."""


def switch_loss(
    probabilities: Float[Tensor, "L E"], chosen: Int[Tensor, "L K"]
) -> Float[Tensor, ""]:
    """E * sum_j f_j P_j: K where load and probability are even, E where one expert has it all.

    f_j is the share of tokens that have expert j among their K (they add up to K), without
    gradient; P_j is the mean probability of expert j. transformers lays the tokens of all layers
    end to end before it takes these means: so must you, to get its number.

    Source: Fedus et al. 2021 (Switch), arXiv:2101.03961, equation 4; `load_balancing_loss_func`
    of transformers for K > 1.
    """
    num_tokens, num_experts = probabilities.shape
    counts = torch.bincount(chosen.flatten(), minlength=num_experts)
    load = counts.to(probabilities.dtype) / max(num_tokens, 1)
    return num_experts * (load * probabilities.sum(dim=0) / max(num_tokens, 1)).sum()


def importance_cv_squared(probabilities: Float[Tensor, "L E"]) -> Float[Tensor, ""]:
    """The squared coefficient of variation of the experts' importance.

        importance_j = sum over tokens of G(x_t)_j;  variance / mean^2, with the sample variance

    0 where all experts matter alike. Load would be the other half of the source's loss; hard
    counts have no gradient, so only importance is here.

    Source: Shazeer et al. 2017, arXiv:1701.06538, equation 6.
    """
    importance = probabilities.sum(dim=0)
    return importance.var() / (importance.mean().square() + _TINY)
