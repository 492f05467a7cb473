"""Whether experts and kinds of text belong together, from a table of counts.

The table has one row an expert and one column a class: how many assignments of tokens of that
class the expert was given. All logarithms are natural.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def expert_class_counts(
    chosen: Int[Tensor, "L K"], classes: Int[Tensor, " L"], *, num_experts: int, num_classes: int
) -> Float[Tensor, "E C"]:
    """How often each expert was given a token of each class; a class below 0 is none."""
    known = classes >= 0
    pairs = chosen[known] * num_classes + classes[known][:, None]
    counts = torch.bincount(pairs.flatten(), minlength=num_experts * num_classes)
    return counts.double().unflatten(0, (num_experts, num_classes))


def normalised_mutual_information(counts: Float[Tensor, "*layer E C"]) -> Float[Tensor, "*layer"]:
    """I(E; C) / sqrt(H(E) H(C)): 0 where experts do not care, 1 where each class has its own.

    0 where there is one class or one expert only, and nothing could be told.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, table 3 (NMI).
    """
    joint = _shares(counts)
    experts, classes = _entropy(joint.sum(dim=-1)), _entropy(joint.sum(dim=-2))
    size = (experts * classes).sqrt()
    # Rounding may leave something like -1e-17 of a mutual information of 0.
    shared = mutual_information(counts).clamp(min=0)
    return torch.where(size > 0, shared / torch.where(size > 0, size, 1.0), 0.0)


def mutual_information(counts: Float[Tensor, "*layer E C"]) -> Float[Tensor, "*layer"]:
    """I(E; C) in nats, from three entropies."""
    joint = _shares(counts)
    both = _entropy(joint.flatten(-2))
    return _entropy(joint.sum(dim=-1)) + _entropy(joint.sum(dim=-2)) - both


def expert_specialisation(counts: Float[Tensor, "*layer E C"]) -> Float[Tensor, "*layer"]:
    """ESI: how far the experts of a class are from those of any token, in nats.

        sum_c p(c) KL( p(E | c) || p(E) )

    It is the mutual information again, so ESI = NMI * sqrt(H(E) H(C)).

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, table 3 (ESI).
    """
    joint = _shares(counts)
    of_class = joint.sum(dim=-2, keepdim=True)
    of_expert = joint.sum(dim=-1, keepdim=True)
    seen = joint > 0
    given_class = torch.where(seen, joint, 1.0) / torch.where(of_class > 0, of_class, 1.0)
    ratio = given_class / torch.where(of_expert > 0, of_expert, 1.0)
    return (joint * torch.where(seen, ratio.log(), 0.0)).sum(dim=(-2, -1))


def _shares(counts: Float[Tensor, "*layer E C"]) -> Float[Tensor, "*layer E C"]:
    return counts / counts.sum(dim=(-2, -1), keepdim=True).clamp(min=1)


def _entropy(shares: Float[Tensor, "*at X"]) -> Float[Tensor, "*at"]:
    return torch.special.entr(shares).sum(dim=-1)
