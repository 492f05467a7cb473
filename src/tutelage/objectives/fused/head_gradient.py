"""Gradients of a head, added up tile by tile in full precision."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.fused.tiles import spans

_SLAB_ENTRIES = 2048


@final
class HeadGradient:
    """Sum over tiles of score_gradient.T @ hidden, for the first V entries of a head.

    Full-precision tiles are added by the matmul itself. Half-precision ones are multiplied a slab
    of entries at a time, transposed (half-precision kernels are slow on the other order), and
    each slab's product is added in fp32: the sum over tiles never rounds.
    """

    def __init__(
        self, shape: tuple[int, int], *, dtype: torch.dtype, matmul_dtype: torch.dtype, like: Tensor
    ) -> None:
        self._dtype = dtype
        self._transposed = matmul_dtype in (torch.bfloat16, torch.float16)
        sum_dtype = torch.float32 if self._transposed else matmul_dtype
        entries, width = shape
        lying = (width, entries) if self._transposed else (entries, width)
        self._total = like.new_zeros(lying, dtype=sum_dtype)
        self._slab = like.new_empty(
            width * min(entries, _SLAB_ENTRIES) if self._transposed else 0, dtype=matmul_dtype
        )

    def add(
        self, gradient: Float[Tensor, "T V"], hidden: Float[Tensor, "T D"], factor: float
    ) -> None:
        """Add factor * gradient.T @ hidden."""
        if not self._transposed:
            entries = gradient.shape[1]
            self._total[:entries].addmm_(gradient.T, hidden, alpha=factor)
            return
        hidden_t = hidden.T.contiguous()
        width = hidden.shape[1]
        for start, stop in spans(gradient.shape[1], _SLAB_ENTRIES):
            product = self._slab[: width * (stop - start)].view(width, stop - start)
            torch.mm(hidden_t, gradient[:, start:stop], out=product)
            self._total[:, start:stop].add_(product, alpha=factor)

    def result(self) -> Float[Tensor, "entries D"]:
        """The sum, in the parameter's own dtype."""
        if not self._transposed:
            return self._total.to(self._dtype)
        out = self._total.new_empty(self._total.shape[::-1], dtype=self._dtype)
        for start, stop in spans(out.shape[0], _SLAB_ENTRIES):
            out[start:stop].copy_(self._total[:, start:stop].T)
        return out
