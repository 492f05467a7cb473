"""Scratch memory that one call leaves to the next.

On CPU, memory fresh from the system costs a page fault for every few kilobytes: as much as the
matmul that fills it. The buffers of a call are therefore kept for the next one of the same thread,
at the size of the largest so far. CUDA's allocator already does this by itself.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from math import prod
from typing import final

import torch
from torch import Tensor

from tutelage.objectives.row_kernels import forget_scratch


@final
class Scratch:
    """Named buffers; who takes one may overwrite it until it is taken again."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A tensor whose content is whatever the last user left there."""
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        size, key = prod(shape), (name, dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(key, None)
            # Ordinary memory also for those who call under inference_mode: the next may not.
            with torch.inference_mode(mode=False):
                buffer = self._buffers[key] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(b.numel() * b.element_size() for b in self._buffers.values())


class _Kept(threading.local):
    def __init__(self) -> None:
        self.idle: Scratch | None = Scratch()


_kept = _Kept()


@contextmanager
def borrowed() -> Generator[Scratch]:
    """This thread's scratch; a call inside a call gets its own."""
    scratch = _kept.idle or Scratch()
    _kept.idle = None
    try:
        yield scratch
    finally:
        _kept.idle = scratch


def release_scratch() -> None:
    """Give back what the fused path and its row kernels keep between calls of this thread."""
    forget_scratch()
    if _kept.idle is not None:
        _kept.idle = Scratch()
