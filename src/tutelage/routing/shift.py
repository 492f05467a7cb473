"""How far routing has moved between two versions of one model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def routing_shift(
    new: Sequence[Float[Tensor, "L E"]], old: Sequence[Float[Tensor, "L E"]]
) -> Float[Tensor, " L"]:
    """Gamma: for each token, the mean over layers of the distance between its two routings.

        Gamma_t = (1 / layers) * sum over layers of || G_new(x_t) - G_old(x_t) ||_2

    G is the router's softmax over all E experts, before top-k. It lies between 0 and the square
    root of 2, which is reached where both are certain of different experts. A gradient never
    flows through it: a token whose advantage is negative could lower its loss by routing far
    away instead of by learning. Computed in float32 or better.

    Args:
        new: router probabilities of each MoE layer, first to last.
        old: the same for the weights that the completions were drawn with.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equation 7.
    """
    if len(new) != len(old) or not new:
        message = f"routing of {len(new)} layers is compared with that of {len(old)}"
        raise ValueError(message)
    distances = [
        torch.linalg.vector_norm(_wide(now) - _wide(before), dim=-1)
        for now, before in zip(new, old, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


@torch.no_grad()
def expert_consistency(
    new: Sequence[Float[Tensor, "L E"]], old: Sequence[Float[Tensor, "L E"]]
) -> Float[Tensor, " E"]:
    """CosSim_j: how much each expert is still asked for where it was asked for before.

        cos(v_new, v_old), with v_j the mean over tokens of G(x_t)_j, one entry a layer

    1 keeps its place. The source does not say what the vector runs over; a mean over tokens
    leaves the layers. With one layer it is always 1.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, table 4.
    """
    now, before = (torch.stack([_wide(p).mean(dim=0) for p in layers]) for layers in (new, old))
    return torch.nn.functional.cosine_similarity(now, before, dim=0)


def _wide(probabilities: Float[Tensor, "L E"]) -> Float[Tensor, "L E"]:
    # Half precision has three digits: a small shift between two roundings would be all noise.
    return probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
