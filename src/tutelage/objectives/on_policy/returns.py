"""What is still to come: the cost of a token and of all that follow it in its completion."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def return_to_go(
    per_token: Float[Tensor, " N"], row_of: Int[Tensor, " N"], *, discount: float
) -> Float[Tensor, " N"]:
    """G_n = sum over k >= n of discount^(k - n) * per_token[k], within n's own row.

    With `per_token` the log-ratios log student - log teacher of tokens the student drew, the
    gradient sum_n G_n * grad log student(y_n) is on average, at a discount of 1, that of reverse
    KL between whole completions; at 0 it is that of `sampled_token`. Carries no gradient: divided
    by the tokens of the step, minus G is what `cross_entropy` with `labels: tokens` takes as
    token weights.

    Args:
        row_of: each token's row; the tokens of a row stand side by side, in their order.
        discount: 0 looks at the token itself only, 1 at all that follows alike (gamma).

    Source: Gu et al. 2024 (MiniLLM), arXiv:2306.08543; b-OPSD, arXiv:2607.28582.
    """
    total = per_token.to(torch.promote_types(per_token.dtype, torch.float32)).clone()
    step = 1
    # Each round doubles how far a sum reaches, up to the end of its row.
    while step < total.shape[0]:
        ahead = torch.where(row_of[step:] == row_of[:-step], total[step:], 0.0)
        total[:-step] += discount**step * ahead
        step *= 2
    return total
