"""Gradients of a head, added up tile by tile in full precision."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.objectives.fused.scratch import Scratch
from tutelage.objectives.fused.tiles import has_amx, spans

_SLAB_ENTRIES = 2048


@final
class HeadGradient:
    """Sum over tiles of score_gradient.T @ hidden, for the first V entries of a head.

    Full-precision tiles are added by the matmul itself. Half-precision ones are multiplied a slab
    of entries at a time and each slab's product is added in fp32: the sum over tiles never rounds.
    Where the processor multiplies half-precision tiles (AMX), a product with its left side
    transposed runs at half speed, so there the slab is made lying and turned as it is added.
    A half-precision head's sum lies in pieces of a slab each, which are given back one by one as
    the result is written: both are never there as a whole.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype,
        matmul_dtype: torch.dtype,
        scratch: Scratch,
        device: torch.device,
    ) -> None:
        self._dtype = dtype
        half = self._half = matmul_dtype in (torch.bfloat16, torch.float16)
        sum_dtype = torch.float32 if half else matmul_dtype
        self._shape = shape
        self._whole: Tensor | None = None
        if half and dtype == matmul_dtype:
            sizes = [stop - start for start, stop in spans(shape[0], _SLAB_ENTRIES)]
            self._parts = [
                torch.empty((size, shape[1]), dtype=sum_dtype, device=device) for size in sizes
            ]
        else:
            self._whole = torch.empty(shape, dtype=sum_dtype, device=device)
            self._parts = list(self._whole.split(_SLAB_ENTRIES))
        self._num_filled = 0
        self._lying = half and device.type == "cpu" and has_amx()
        slab = min(shape[0], _SLAB_ENTRIES) if half else 0
        lying = (shape[1], slab) if self._lying else (slab, shape[1])
        self._product = scratch.take("head slab", lying, dtype=matmul_dtype, device=device)
        wide = (slab, shape[1])
        self._wide = scratch.take("wide head slab", wide, dtype=sum_dtype, device=device)

    def add(
        self, gradient: Float[Tensor, "T V"], hidden: Float[Tensor, "T D"], factor: float
    ) -> None:
        """Add factor * gradient.T @ hidden."""
        entries = gradient.shape[1]
        first = self._num_filled == 0
        self._num_filled = entries
        if self._half:
            self._add_slabs(gradient, hidden, factor, first=first)
            return
        assert self._whole is not None  # noqa: S101  only half-precision sums lie in pieces
        total = self._whole[:entries]
        beta = 0 if first else 1
        torch.addmm(total, gradient.T, hidden, beta=beta, alpha=factor, out=total)

    def _add_slabs(
        self,
        gradient: Float[Tensor, "T V"],
        hidden: Float[Tensor, "T D"],
        factor: float,
        *,
        first: bool,
    ) -> None:
        turned = hidden.T.contiguous() if self._lying else hidden
        pieces = spans(gradient.shape[1], _SLAB_ENTRIES)
        for (start, stop), part in zip(pieces, self._parts, strict=False):
            total = part[: stop - start]
            product = self._multiplied(gradient[:, start:stop], turned)
            if first:
                total.copy_(product).mul_(factor)
            else:
                # Adding in two types at once would make a wide copy of its own.
                wide = self._wide[: stop - start].copy_(product)
                total.add_(wide, alpha=factor)

    def _multiplied(
        self, gradient: Float[Tensor, "T S"], hidden: Float[Tensor, "A B"]
    ) -> Float[Tensor, "S D"]:
        count = gradient.shape[1]
        if not self._lying:
            return torch.mm(gradient.T, hidden, out=self._product[:count])
        width = hidden.shape[0]
        out = self._product.view(-1)[: width * count].view(width, count)
        return torch.mm(hidden, gradient, out=out).T

    def result(self) -> Float[Tensor, "entries D"]:
        """The sum, in the parameter's own dtype; zeros for entries behind the first V."""
        filled = self._num_filled
        if self._whole is not None:
            self._whole[filled:].zero_()
            return self._whole.to(self._dtype)
        found = self._parts[0].new_empty(self._shape, dtype=self._dtype)
        # From the end: the system takes memory back where nothing lies behind it.
        while self._parts:
            start = (len(self._parts) - 1) * _SLAB_ENTRIES
            part = self._parts.pop()
            found[start : start + len(part)].copy_(part)
        found[filled:].zero_()
        return found
