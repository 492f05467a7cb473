"""How the tokens of a batch are spread over the experts of one layer.

An assignment is one (token, slot) pair: a token that is sent to K experts makes K of them. Counts
add up over micro-batches and ranks, so whatever must be divided is divided at the very end.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def assignment_counts(
    chosen: Int[Tensor, "L K"], *, num_experts: int, counted: Bool[Tensor, " L"] | None = None
) -> Float[Tensor, " E"]:
    """Assignments that each expert was given, in float64 so that sums over ranks are exact.

    Args:
        counted: True for the tokens that count; None counts all of them.
    """
    kept = chosen if counted is None else chosen[counted]
    return torch.bincount(kept.flatten(), minlength=num_experts).double()


def expert_load(counts: Float[Tensor, "*layer E"]) -> Float[Tensor, "*layer E"]:
    """Each expert's share of the assignments: f_j, adding up to 1 whatever K is.

    A layer without a single assignment is called even: nothing is known against it.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, section 2.4.
    """
    total = counts.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1), 1 / counts.shape[-1])


def max_violation(load: Float[Tensor, "*layer E"]) -> Float[Tensor, "*layer"]:
    """Load of the busiest expert over the mean load, less 1: 0 is even, E - 1 is one expert alone.

    Source: Wang et al. 2024 (Loss-Free Balancing), arXiv:2408.15664, MaxVio.
    """
    return load.max(dim=-1).values / load.mean(dim=-1) - 1


def num_dead(counts: Float[Tensor, "*layer E"]) -> Int[Tensor, "*layer"]:
    """Experts that no token was sent to."""
    return (counts == 0).sum(dim=-1)


def router_entropy(probabilities: Float[Tensor, "*at E"]) -> Float[Tensor, "*at"]:
    """How undecided a router is, in nats: 0 is certain, log(E) has no preference."""
    return torch.special.entr(probabilities).sum(dim=-1)
