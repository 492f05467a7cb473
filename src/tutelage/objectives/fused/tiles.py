"""How the work is cut: tokens to a matmul tile, rows to a softmax block."""

from collections.abc import Iterator

import torch

_SMALLEST_TILE = 64
_ENOUGH_WITHOUT_AMX = 352
"""On CPU only the matrix unit for half precision gains from tiles of more tokens."""
_ENTRIES_OF_A_THREAD = 2**18
"""Fewer, and starting an operation costs as much as its work; more, and rows leave the cache."""
_BLOCK_ENTRIES = 2**22
_GPU_BLOCK_ENTRIES = 2**26


def tile_tokens(
    num_tokens: int, *, bytes_per_token: int, memory_bytes: int, useful_tokens: int | None
) -> int:
    """Tokens in a matmul tile, cut so that all tiles are equally full.

    As many as the memory allows, or as are of any use.
    """
    most = max(memory_bytes // max(bytes_per_token, 1), _SMALLEST_TILE)
    most = most if useful_tokens is None else min(most, useful_tokens)
    num_tiles = -(-num_tokens // most)
    return -(-num_tokens // max(num_tiles, 1))


def useful_tokens(dtype: torch.dtype, device: torch.device) -> int | None:
    """From how many tokens on a matmul is as fast as it gets; None: more are always better."""
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cpu" or (half and has_amx()):
        return None
    return _ENOUGH_WITHOUT_AMX


def has_amx() -> bool:
    """Whether the processor has a matrix unit for bfloat16."""
    found = torch.cpu.get_capabilities().get("amx_bf16", False)
    return bool(found)


def block_rows(num_entries: int, device: torch.device) -> int:
    """Rows in a softmax block: on CPU a few for each thread, so that they stay in cache."""
    if device.type != "cpu":
        return max(_GPU_BLOCK_ENTRIES // num_entries, 1)
    threads = torch.get_num_threads()
    most_of_a_thread = max(_BLOCK_ENTRIES // num_entries // threads, 1)
    return threads * min(-(-_ENTRIES_OF_A_THREAD // num_entries), most_of_a_thread)


def spans(total: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces; the last may be shorter."""
    for start in range(0, total, max(step, 1)):
        yield start, min(start + step, total)
