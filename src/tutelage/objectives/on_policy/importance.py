"""How much likelier a token is under today's student than under the one that drew it."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Outside = Literal["cap", "drop"]


@torch.no_grad()
def importance_weights(
    student_logp: Float[Tensor, " N"],
    sampled_logp: Float[Tensor, " N"],
    *,
    highest: float = 2.0,
    outside: Outside = "cap",
) -> Float[Tensor, " N"]:
    """The ratio student / sampler of each token, at most `highest`; no gradient.

    Multiply a token's weight by it where the student has moved on since it wrote. 1 where it has
    not. Both log-probabilities must be at the same temperature, top-p and top-k.

    Args:
        outside: what becomes of a ratio above `highest`: `cap` it, or `drop` the token (weight 0).

    Source: truncated importance sampling, Ionides 2008; the cap of 2 is that of SDPO's recipe.
    """
    return _bounded(_wide(student_logp) - _wide(sampled_logp), highest, outside)


@torch.no_grad()
def sequence_importance_weights(
    student_logp: Float[Tensor, " N"],
    sampled_logp: Float[Tensor, " N"],
    row_of: Int[Tensor, " N"],
    *,
    highest: float = 2.0,
    outside: Outside = "cap",
) -> Float[Tensor, " N"]:
    """The ratio of whole completions, the product over a row, for each of its tokens."""
    gaps = _wide(student_logp) - _wide(sampled_logp)
    row = row_of.long()
    num_rows = int(row.max()) + 1 if row.numel() else 0
    of_row = gaps.new_zeros(num_rows).index_add(0, row, gaps)
    return _bounded(of_row, highest, outside)[row]


def _wide(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return logp.to(torch.promote_types(logp.dtype, torch.float32))


def _bounded(
    log_ratio: Float[Tensor, " N"], highest: float, outside: Outside
) -> Float[Tensor, " N"]:
    ratio = log_ratio.exp()
    if outside == "cap":
        return ratio.clamp(max=highest)
    return torch.where(ratio <= highest, ratio, 0.0)
