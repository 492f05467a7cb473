"""Matrices of a model that writes: joined, in the dtype it computes in, laid out for few rows."""

# pyright: basic
# The door to oneDNN's packed matrices, which PyTorch has for its own compiler.

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

TOKENS_THAT_PAY = 24
"""Packing costs about as much time as it saves over so many tokens."""


@final
@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A linear map. Packed, it reads its weight at the speed of memory, even for a few rows."""

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    packed: bool

    def __call__(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """`linear`, in the weight's dtype."""
        x = x.to(self.dtype)
        if not self.packed:
            return linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001  no public name
            x.contiguous(), self.weight, self.bias, "none", [], ""
        )


def joined(
    weights: Sequence[Float[Tensor, "_ I"]],
    biases: Sequence[Float[Tensor, " _"] | None],
    *,
    dtype: torch.dtype,
    packed: bool,
) -> Matrix:
    """One matrix whose output is the outputs of all of them, one behind the other.

    Args:
        packed: lay the weight out anew where that can be done; otherwise it may share memory
            with the model.
    """
    parts = [weight.detach().to(dtype) for weight in weights]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    bias = None
    if any(part is not None for part in biases):
        filled = [
            weight.new_zeros(len(part)) if own is None else own.detach().to(dtype)
            for part, own in zip(parts, biases, strict=True)
        ]
        bias = torch.cat(filled)
    packed = packed and can_be_packed(weight)
    if packed:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())  # noqa: SLF001
    return Matrix(weight=weight, bias=bias, dtype=dtype, packed=packed)


def can_be_packed(weight: Float[Tensor, "O I"]) -> bool:
    """Whether oneDNN has its own layout for it here: x86 processors, float32 and bfloat16."""
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return weight.dtype == torch.float32
