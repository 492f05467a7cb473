"""The only place where many tokens become one number."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean"]


def token_mean(
    per_token: Float[Tensor, "*at"],
    loss_mask: Bool[Tensor, "*at"],
    *,
    num_tokens: int | Int[Tensor, ""],
) -> Float[Tensor, ""]:
    """Sum over the trained tokens here, divided by the trained tokens of the whole step.

    Added up over micro-batches and ranks, the results are the mean over every trained token:
    how the step was cut changes nothing. A batch with no trained token gives a zero that can
    still be differentiated, so no rank skips its backward pass.
    """
    kept = torch.where(loss_mask, per_token, 0.0)
    return kept.sum() / _at_least_one(num_tokens)


def sequence_mean(
    per_token: Float[Tensor, " N"],
    loss_mask: Bool[Tensor, " N"],
    row_of: Int[Tensor, " N"],
    *,
    num_rows: int | Int[Tensor, ""],
) -> Float[Tensor, ""]:
    """The mean of each row's own mean: a short answer counts as much as a long one.

    Args:
        row_of: the row each token belongs to. A row is never cut over micro-batches.
        num_rows: rows with at least one trained token in the whole step.
    """
    kept = torch.where(loss_mask, per_token, 0.0)
    return (kept / _row_lengths(loss_mask, row_of)).sum() / _at_least_one(num_rows)


def token_weights(
    loss_mask: Bool[Tensor, " N"],
    row_of: Int[Tensor, " N"],
    *,
    reduction: Reduction,
    num_tokens: int | Int[Tensor, ""],
    num_rows: int | Int[Tensor, ""],
) -> Float[Tensor, " N"]:
    """What each token's nats weigh, so that the weighted sum is this micro-batch's share.

    Untrained tokens weigh exactly 0. Whoever multiplies must leave them out, for 0 * nan is nan.
    """
    trained = loss_mask.to(torch.float32)
    if reduction == "token_mean":
        return trained / _at_least_one(num_tokens)
    return trained / _row_lengths(loss_mask, row_of) / _at_least_one(num_rows)


def _row_lengths(loss_mask: Bool[Tensor, " N"], row_of: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """For each token, how many tokens of its row are trained; 1 where none is."""
    row = row_of.long()
    num_rows = int(row.max()) + 1 if row.numel() else 0
    lengths = torch.zeros(num_rows, device=row.device).index_add(
        0, row, loss_mask.to(torch.float32)
    )
    return lengths.clamp(min=1)[row]


def _at_least_one(count: int | Int[Tensor, ""]) -> int | Int[Tensor, ""]:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
