"""A head's gradient, added up a slab of entries at a time: right in each, and never there twice."""

import itertools
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.objectives.fused.problems import error
from tutelage.objectives.fused import head_gradient
from tutelage.objectives.fused.head_gradient import HeadGradient
from tutelage.objectives.fused.scratch import Scratch

ENTRIES, WIDTH = 5000, 8
CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def sum_of(
    dtype: torch.dtype, matmul_dtype: torch.dtype, *, filled: int, tiles: int = 3
) -> tuple[Tensor, Tensor]:
    """What comes out, and what should."""
    g = torch.Generator().manual_seed(0)
    kept = HeadGradient(
        (ENTRIES, WIDTH), dtype=dtype, matmul_dtype=matmul_dtype, scratch=Scratch(), device=CPU
    )
    true = torch.zeros(ENTRIES, WIDTH, dtype=torch.float64)
    for _ in range(tiles):
        gradient = torch.randn(6, filled, generator=g).to(matmul_dtype)
        hidden = torch.randn(6, WIDTH, generator=g).to(matmul_dtype)
        kept.add(gradient, hidden, 0.25)
        true[:filled] += 0.25 * gradient.double().T @ hidden.double()
    return kept.result(), true


@pytest.mark.parametrize(("dtype", "matmul_dtype"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("filled", [ENTRIES, 4096, 2100, 7])
@pytest.mark.parametrize("amx", [False, True])
def test_every_slab_is_the_sum_over_all_tiles(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    matmul_dtype: torch.dtype,
    filled: int,
    *,
    amx: bool,
) -> None:
    monkeypatch.setattr(head_gradient, "has_amx", lambda: amx)
    found, true = sum_of(dtype, matmul_dtype, filled=filled)
    assert found.dtype == dtype
    assert found.shape == (ENTRIES, WIDTH)
    coarse = {dtype, matmul_dtype} & {torch.bfloat16, torch.float16}
    assert error(found, true) < (1e-2 if coarse else 1e-6)
    assert not found[filled:].any()


def test_without_a_tile_it_is_zero() -> None:
    for dtype in DTYPES:
        assert not sum_of(dtype, dtype, filled=ENTRIES, tiles=0)[0].any()


class SlabsAtEachCopy(TorchDispatchMode):
    """How many of some tensors are still there whenever something is copied."""

    def __init__(self, slabs: list[weakref.ref[Tensor]]) -> None:
        super().__init__()
        self._slabs = slabs
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.copy_.default:
            self.seen.append(sum(slab() is not None for slab in self._slabs))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_heads_sum_goes_as_its_gradient_comes(dtype: torch.dtype) -> None:
    kept = HeadGradient(
        (ENTRIES, WIDTH), dtype=dtype, matmul_dtype=dtype, scratch=Scratch(), device=CPU
    )
    kept.add(torch.ones(2, ENTRIES).to(dtype), torch.ones(2, WIDTH).to(dtype), 1.0)
    slabs = [weakref.ref(part) for part in kept._parts]
    assert [len(part) for part in kept._parts] == [2048, 2048, 904]
    with SlabsAtEachCopy(slabs) as copies:
        found = kept.result()
    assert copies.seen == [3, 2, 1]
    assert bool((found == 2).all())
