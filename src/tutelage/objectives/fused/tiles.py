"""How the work is cut: tokens to a matmul tile, rows to a softmax block."""

from collections.abc import Iterator

import torch

_SMALLEST_TILE = 64
_ENOUGH_FOR_FULL_PRECISION = 448
"""On CPU, full-precision matmuls gain nothing from more tokens; half-precision ones still do."""
_BLOCK_ENTRIES = 2**16
_GPU_BLOCK_ENTRIES = 2**26


def tile_tokens(
    num_tokens: int, *, bytes_per_token: int, memory_bytes: int, dtype: torch.dtype, on_cpu: bool
) -> int:
    """Tokens in a matmul tile, cut so that all tiles are equally full.

    As many as the memory allows, or as are of any use.
    """
    most = max(memory_bytes // max(bytes_per_token, 1), _SMALLEST_TILE)
    if on_cpu and dtype in (torch.float32, torch.float64):
        most = min(most, _ENOUGH_FOR_FULL_PRECISION)
    num_tiles = -(-num_tokens // most)
    return -(-num_tokens // max(num_tiles, 1))


def block_rows(num_entries: int, device: torch.device) -> int:
    """Rows in a softmax block: on CPU one or a few for each thread, so that they stay in cache."""
    if device.type != "cpu":
        return max(_GPU_BLOCK_ENTRIES // num_entries, 1)
    return torch.get_num_threads() * max(_BLOCK_ENTRIES // num_entries, 1)


def spans(total: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces; the last may be shorter."""
    for start in range(0, total, max(step, 1)):
        yield start, min(start + step, total)
