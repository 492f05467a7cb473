"""How much memory the fused path takes: not more with more tokens, and as much as it may."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.objectives.fused.problems import FEATURES, Case, make_case, objective_of
from tutelage.objectives.fused import FusedLoss, FusedOptions, fused_loss, release_scratch, tiles

FORWARD_KL = objective_of({"kind": "forward_kl"})


def loss_of(case: Case, **options: Any) -> FusedLoss:
    return fused_loss(
        case.hidden,
        case.head,
        case.target,
        FORWARD_KL,
        token_weights=case.weights,
        options=FusedOptions(**options),
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        # Scratch that larger blocks left behind would be the largest here too.
        release_scratch()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.itemsize)
        return out


@pytest.mark.parametrize("logits", ["native", "split", "fp32"])
@pytest.mark.parametrize("backward", [False, True])
def test_memory_does_not_grow_with_the_tokens(logits: str, *, backward: bool) -> None:
    largest = {}
    for num_tokens in (64, 256):
        case = make_case(
            FEATURES["bias"], dtype=torch.bfloat16, num_tokens=num_tokens, num_entries=300
        )
        with LargestTensor() as seen:
            loss = loss_of(case, tile_tokens=16, logits=logits).loss
            if backward:
                loss.backward()
        largest[num_tokens] = seen.numel
        assert seen.numel < num_tokens * 300
    # A tile of scores, or the head's own gradient; hidden states are smaller than both.
    assert largest[64] == largest[256] <= max(16 * 300, 300 * 16)


@pytest.mark.parametrize(
    ("dtype", "logits", "bytes_per_entry"),
    [
        (torch.float32, "auto", 4),
        (torch.bfloat16, "native", 2),
        (torch.bfloat16, "split", 2 + 2),
        (torch.bfloat16, "fp32", 4),
    ],
)
def test_the_memory_limit_decides_on_the_tile(
    dtype: torch.dtype, logits: str, bytes_per_entry: int
) -> None:
    case = make_case(FEATURES["plain"], dtype=dtype, num_tokens=256, num_entries=300)
    sizes = []
    for memory_bytes in (1, 300 * bytes_per_entry * 2 * 128, 10**9):
        with LargestTensor() as seen:
            loss_of(case, memory_bytes=memory_bytes, logits=logits)
        sizes.append(seen.numel)
    assert sizes == [64 * 300, 128 * 300, 256 * 300]


def test_tiles_are_no_longer_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, tokens in ((False, 352), (True, 704)):
        monkeypatch.setattr(tiles, "has_amx", lambda amx=amx: amx)
        for dtype in (torch.float32, torch.bfloat16):
            case = make_case(FEATURES["plain"], dtype=dtype, num_tokens=704, num_entries=300)
            with LargestTensor() as seen:
                loss_of(case)
            assert seen.numel == (352 if dtype == torch.float32 else tokens) * 300
