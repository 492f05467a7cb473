# pyright: basic
# The door to transformers' attention functions, whose types are partial.
"""Attention over rows laid end to end: each row attends to itself and to nothing else.

It is registered with transformers under one name. Called with `row_lengths` it splits the packed
sequence and asks PyTorch's kernel for each row, so neither padding nor a mask is ever built.
Called without (generation, padded batches) it is transformers' own SDPA, soft cap included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROW_ATTENTION = "tutelage_rows"
"""The name under which transformers finds this attention."""


def register() -> None:
    """Make the attention known to transformers; doing it twice changes nothing."""
    AttentionInterface.register(ROW_ATTENTION, row_attention)
    AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)


def row_attention(
    module: nn.Module,
    query: Float[Tensor, "B H Q C"],
    key: Float[Tensor, "B G S C"],
    value: Float[Tensor, "B G S C2"],
    attention_mask: Tensor | None,
    **options: object,
) -> tuple[Float[Tensor, "B Q H C2"], None]:
    """The attention of one layer, in the form transformers calls it.

    H query heads, G key-value heads, C channels a head.

    Args:
        attention_mask: not read when there are `row_lengths`; the rows are the mask.
        options: `row_lengths` is ours. Of transformers' own, `scaling`, `dropout`,
            `sliding_window` and `softcap` are obeyed.
    """
    how = _How.read(options)
    if how.row_lengths is not None:
        if _backward_is_slow(query):
            wide = (x.float() for x in (query, key, value))
            with torch.autocast("cpu", enabled=False):
                return _packed(*wide, how=how).to(query.dtype), None
        return _packed(query, key, value, how=how), None
    if how.softcap is not None:
        causal = attention_mask is None and query.shape[2] > 1
        allowed = _causal(query.shape[2], None, query.device) if causal else attention_mask
        return _softcapped(query, key, value, allowed, how=how).transpose(1, 2), None
    named = cast(dict[str, Any], options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **named)


@final
@dataclass(frozen=True, kw_only=True)
class _How:
    row_lengths: tuple[int, ...] | None
    scaling: float | None
    dropout: float
    window: int | None
    softcap: float | None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> "_How":
        return cls(
            row_lengths=options.get("row_lengths"),
            scaling=options.get("scaling"),
            dropout=options.get("dropout", 0.0),
            window=options.get("sliding_window"),
            softcap=options.get("softcap"),
        )


def _backward_is_slow(query: Float[Tensor, "1 H L C"]) -> bool:
    """Whether full precision is the faster one.

    PyTorch's half-precision backward on CPU takes two to three times as long on rows of a hundred
    tokens, and no less on rows of a thousand.
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and query.device.type == "cpu" and query.requires_grad


def _packed(
    query: Float[Tensor, "1 H L C"],
    key: Float[Tensor, "1 G L C"],
    value: Float[Tensor, "1 G L C2"],
    *,
    how: _How,
) -> Float[Tensor, "1 L H C2"]:
    # Rows of one length that follow each other go as one batch.
    runs = [(length, len(list(run))) for length, run in groupby(how.row_lengths or ()) if length]
    sizes = [length * count for length, count in runs]
    # One split each: its gradient is one concatenation, where slices would each add to zeros.
    pieces = zip(runs, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    outputs: list[Tensor] = []
    for (length, count), *qkv in pieces:
        q, k, v = (x[0].unflatten(1, (count, length)).transpose(0, 1) for x in qkv)
        outputs.append(_one_length(q, k, v, how=how).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


def _one_length(
    query: Float[Tensor, "n H T C"],
    key: Float[Tensor, "n G T C"],
    value: Float[Tensor, "n G T C2"],
    *,
    how: _How,
) -> Float[Tensor, "n H T C2"]:
    length = query.shape[2]
    narrow = how.window is not None and length > how.window
    if how.softcap is not None:
        allowed = _causal(length, how.window if narrow else None, query.device)
        return _softcapped(query, key, value, allowed, how=how)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_causal(length, how.window, query.device) if narrow else None,
        is_causal=not narrow,
        scale=how.scaling,
        dropout_p=how.dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _causal(length: int, window: int | None, device: torch.device) -> Bool[Tensor, "T T"]:
    """Each position sees itself and those before it, `window` in all when there is one."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() if window is None else ones.tril() & ones.triu(1 - window)


def _softcapped(
    query: Float[Tensor, "B H Q C"],
    key: Float[Tensor, "B G S C"],
    value: Float[Tensor, "B G S C2"],
    allowed: Bool[Tensor, "*at Q S"] | None,
    *,
    how: _How,
) -> Float[Tensor, "B H Q C2"]:
    """Attention whose scores are squeezed to softcap * tanh(score / softcap): no kernel has it."""
    softcap = cast(float, how.softcap)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if how.scaling is None else how.scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / softcap))
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=exact).to(query.dtype)
    return dropout(weights, p=how.dropout) @ value
