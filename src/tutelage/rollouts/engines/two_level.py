"""The draw of `draw_scored` at a fraction of its cost: a block of the vocabulary, then inside it.

Every entry is read once in float32: exponentials, and their sums over blocks. Float64 serves the
few numbers that decide: the running sum over the blocks and, in the one block the uniform falls
into, its entries. The same uniform gives the same token and log-probability as `draw_scored`, up
to the rounding of a block's sum (about one part in ten million). Top-k and top-p look for their
entries only in the blocks whose largest entries are among the largest.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tutelage.rollouts.engines.sampling import Sampling, nucleus, pick, widths

BLOCK = 256
TOP_BLOCK = 64
LOWEST = -87.0
"""Below it float32 exponentials leave the normal numbers, and cost a hundred times as much."""
SMALLEST_UNIFORM = 2.0**-54
"""In place of 0, so that what stands for ruled out entries in the sums is never drawn."""


def draw_by_blocks(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], sampling: Sampling
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token a row and its log-probability: see `draw_scored`."""
    scores = _whole_blocks(logits)
    if sampling.temperature == 0:
        return _likeliest(scores)
    highest = scores.amax(dim=-1, keepdim=True)
    if sampling.top_k is None and sampling.top_p == 1:
        tokens, logp = _any_entry(scores, highest, uniforms, sampling.temperature)
    else:
        tokens, logp = _top_entry(scores, highest, uniforms, sampling)
    return torch.where(highest[:, 0].isfinite(), tokens, -1), logp


def _whole_blocks(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V2"]:
    """In float32 or wider, filled up with entries that are ruled out."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    missing = -wide.shape[-1] % BLOCK
    return pad(wide, (0, missing), value=-torch.inf) if missing else wide


def _likeliest(scores: Float[Tensor, "B V"]) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The first of the highest, as `max` gives it."""
    rows = torch.arange(scores.shape[0], device=scores.device)
    blocks = scores.unflatten(1, (-1, BLOCK))
    highest, at = blocks.amax(dim=-1).max(dim=-1)
    token = at * BLOCK + blocks[rows, at].argmax(dim=-1)
    return torch.where(highest.isfinite(), token, -1), torch.zeros_like(highest).double()


def _sums(
    scores: Float[Tensor, "B V"], highest: Float[Tensor, "B 1"], temperature: float
) -> Float[Tensor, "B N"]:
    """The exponentials' sums over the blocks, as float64."""
    above = (scores - highest).div_(temperature).clamp_(min=LOWEST).exp_()
    return above.unflatten(1, (-1, BLOCK)).sum(dim=-1).double()


def _any_entry(
    scores: Float[Tensor, "B V"],
    highest: Float[Tensor, "B 1"],
    uniforms: Float[Tensor, " B"],
    temperature: float,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    rows = torch.arange(scores.shape[0], device=scores.device)
    sums = _sums(scores, highest, temperature)
    cumulative = sums.cumsum(dim=-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    wanted = uniforms.double()[:, None].clamp(min=SMALLEST_UNIFORM) * total
    wanted = torch.minimum(wanted, below_total)
    block = torch.searchsorted(cumulative, wanted, right=True).clamp(max=sums.shape[1] - 1)
    # Where in its block: the same draw once more, in exact numbers.
    inside = (wanted - cumulative.gather(1, block)) / sums.gather(1, block) + 1
    entries = scores.unflatten(1, (-1, BLOCK))[rows, block[:, 0]]
    above = (entries - highest).double() / temperature
    place, _ = pick(above.exp(), None, inside[:, 0].clamp(min=0))
    place = place.clamp(min=0)  # where the scores are not finite
    logp = above.gather(1, place[:, None]) - total.log()
    return block[:, 0] * BLOCK + place, logp[:, 0]


def _top_entry(
    scores: Float[Tensor, "B V"],
    highest: Float[Tensor, "B 1"],
    uniforms: Float[Tensor, " B"],
    sampling: Sampling,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    t = sampling.temperature
    total = None
    if sampling.top_k is None:
        total = _sums(scores, highest, t).sum(dim=-1, keepdim=True)
    p = ids = None
    for width in widths(scores.shape[-1], sampling):
        values, ids = _largest(scores, width)
        p = ((values - highest).double() / t).exp()
        p = p / (p.sum(dim=-1, keepdim=True) if total is None else total)
        if total is None or bool((p.sum(dim=-1) >= sampling.top_p).all()):
            break
    assert p is not None  # noqa: S101  there is always a width
    return pick(nucleus(p, sampling.top_p), ids, uniforms)


def _largest(
    scores: Float[Tensor, "B V"], num_entries: int
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """The largest entries, sorted; none of them lies outside of that many largest blocks."""
    blocks = scores.unflatten(1, (-1, TOP_BLOCK))
    if 2 * num_entries >= blocks.shape[1]:
        return scores.topk(num_entries, dim=-1)
    at = blocks.amax(dim=-1).topk(num_entries, dim=-1).indices
    rows = torch.arange(scores.shape[0], device=scores.device)[:, None]
    values, place = blocks[rows, at].flatten(1).topk(num_entries, dim=-1)
    block = at.gather(1, place // TOP_BLOCK)
    return values, block * TOP_BLOCK + place % TOP_BLOCK
