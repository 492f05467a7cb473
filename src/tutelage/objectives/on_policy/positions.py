"""Which tokens of a completion are trained, and how much by their place in it."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def without_first(
    loss_mask: Bool[Tensor, " N"], offset_in_row: Int[Tensor, " N"], *, num_skipped: int
) -> Bool[Tensor, " N"]:
    """The mask without the first tokens of each completion.

    Tokens and rows of the step are to be counted after this, so that the mean stays a mean.
    """
    return loss_mask & (offset_in_row >= num_skipped)


def without_ids(
    loss_mask: Bool[Tensor, " N"], labels: Int[Tensor, " N"], ids: Iterable[int]
) -> Bool[Tensor, " N"]:
    """The mask without some token ids, such as a family's special tokens."""
    named = torch.tensor(sorted(ids), dtype=labels.dtype, device=labels.device)
    return loss_mask & ~torch.isin(labels, named)


def position_weights(
    loss_mask: Bool[Tensor, " N"], row_of: Int[Tensor, " N"], *, slope: float
) -> Float[Tensor, " N"]:
    """From 1 - slope at a completion's first trained token evenly to 1 + slope at its last.

    Their mean over the trained tokens of a row is 1, so no row gains on another. Above 0 late
    tokens count for more, below 0 early ones; the papers disagree on which helps (arXiv 2605.21606
    and 2606.22600), so 0 is what to compare with. Untrained tokens have weight 1.

    Args:
        row_of: each token's row; the tokens of a row stand side by side, in their order.
        slope: from -1 to 1.
    """
    row, trained = row_of.long(), loss_mask.long()
    num_rows = int(row.max()) + 1 if row.numel() else 0
    lengths = torch.zeros(num_rows, dtype=torch.int64, device=row.device).index_add(0, row, trained)
    before_row = lengths.cumsum(dim=0) - lengths
    place = trained.cumsum(dim=0) - trained - before_row[row]
    last = (lengths - 1).clamp(min=1)[row]
    tilted = 1 + slope * (2 * place / last - 1)
    return torch.where(loss_mask & (lengths[row] > 1), tilted, 1.0)
