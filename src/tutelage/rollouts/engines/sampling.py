"""How a next token is drawn from a model's scores: settings, and the draw itself."""

from collections.abc import Iterator
from typing import Annotated, final

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.settings import Settings

FIRST_TRIES = (256, 4096)
"""Entries sorted for top-p before the whole vocabulary is: nearly always the first is enough."""


@final
class Sampling(Settings):
    """How completions are drawn."""

    max_completion_tokens: Annotated[int, Ge(1)] = 256
    """A completion that has not ended after so many tokens is cut there and marked truncated."""

    temperature: Annotated[float, Ge(0)] = 1.0
    """Divides the logits. 0 is greedy: always the likeliest token."""

    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw from the fewest likeliest tokens whose probabilities reach this sum. 1 keeps all."""

    top_k: Annotated[int, Ge(1)] | None = None
    """Draw from that many likeliest tokens; none keeps all. Applied before top_p."""

    batch_rows: Annotated[int, Ge(1)] = 32
    """Rows generated side by side. Changes speed and memory, not what is drawn."""


def draw(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], sampling: Sampling
) -> Int[Tensor, " B"]:
    """`draw_scored` without the log-probabilities."""
    return draw_scored(logits, uniforms, sampling)[0]


def draw_scored(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], sampling: Sampling
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token a row: the inverse of the cumulative distribution at `uniforms` in [0, 1).

    Temperature first, then top-k, then top-p over what top-k left; the most likely token always
    stays. A row whose scores hold nan or +inf gives -1. Greedy rows ignore `uniforms`.

    Returns:
        The tokens; and, in float64 nats, the log-probability each had in the distribution it was
        drawn from: what is left after temperature, top-k and top-p, normalised again. Greedy
        tokens are certain, so theirs is 0.

    Source: Holtzman et al. 2019, nucleus sampling, arXiv:1904.09751.
    """
    if sampling.temperature == 0:
        best, ids = logits.max(dim=-1)
        return torch.where(best.isfinite(), ids, -1), torch.zeros_like(best, dtype=torch.float64)
    logp = torch.log_softmax(logits.double() / sampling.temperature, dim=-1)
    p, ids = _kept(logp, sampling)
    return pick(p, ids, uniforms)


def pick(
    p: Float[Tensor, "B K"], ids: Int[Tensor, "B K"] | None, uniforms: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The draw itself, from probabilities in float64 that need not add up to 1.

    Args:
        ids: what the probabilities belong to; None: the entries of the vocabulary in order.
    """
    cumulative = p.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may lift the product to the total itself, behind the last token that can be drawn.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    place = torch.searchsorted(
        cumulative, torch.minimum(uniforms.double()[:, None] * total, below_total), right=True
    )
    # Where the scores are nan, the place may lie behind the last one.
    place = place.clamp(max=p.shape[-1] - 1)
    token = place if ids is None else ids.gather(1, place)
    drawn_logp = p.gather(1, place).log() - total.log()
    return torch.where(total.isfinite(), token, -1)[:, 0], drawn_logp[:, 0]


def nucleus(p: Float[Tensor, "B K"], top_p: float) -> Float[Tensor, "B K"]:
    """Sorted probabilities, without those behind the first that reach `top_p` together."""
    before = p.cumsum(dim=-1) - p
    first = torch.arange(p.shape[-1], device=p.device) == 0
    return torch.where((before < top_p) | first, p, 0.0)


def _kept(
    logp: Float[Tensor, "B V"], sampling: Sampling
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"] | None]:
    """Probabilities to draw from and the ids they belong to (None: all ids in order)."""
    if sampling.top_k is None and sampling.top_p == 1:
        return logp.exp(), None
    p, ids = logp.exp(), None
    for num_sorted in widths(logp.shape[-1], sampling):
        values, ids = logp.topk(num_sorted, dim=-1)
        p = values.exp()
        if sampling.top_k is not None or bool((p.sum(dim=-1) >= sampling.top_p).all()):
            break
    if sampling.top_k is not None:
        p = p / p.sum(dim=-1, keepdim=True)
    return nucleus(p, sampling.top_p), ids


def widths(vocabulary: int, sampling: Sampling) -> Iterator[int]:
    """How many entries to sort: the first width that holds all that may be drawn is enough."""
    if sampling.top_k is not None:
        yield min(sampling.top_k, vocabulary)
        return
    yield from (width for width in FIRST_TRIES if width < vocabulary)
    yield vocabulary
