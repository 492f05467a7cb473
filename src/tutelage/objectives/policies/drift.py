"""How much routers have changed their mind about the experts they once chose."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def log_router_drift(
    new: Sequence[Float[Tensor, "L E"]],
    old: Sequence[Float[Tensor, "L E"]],
    chosen: Sequence[Int[Tensor, "L K"]],
) -> Float[Tensor, " L"]:
    """Average over layers and over the K old experts of |log new - log old|; no gradient.

    0 where nothing has moved. The routers' probabilities are over all E experts.

    Args:
        chosen: the experts that were chosen then.

    Source: the router ratio of RSPO, arXiv:2510.23027, by secondary accounts.
    """
    layers: list[Tensor] = []
    for now, then, experts in zip(new, old, chosen, strict=True):
        tiny = torch.finfo(now.dtype).tiny
        gap = now.clamp(min=tiny).log() - then.clamp(min=tiny).log()
        layers.append(gap.gather(-1, experts.long()).abs().mean(dim=-1))
    return torch.stack(layers).mean(dim=0)
