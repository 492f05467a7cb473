"""The attention of rows laid end to end, by itself."""

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.attention import row_attention

LENGTHS = (7, 1, 12)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 8, generator=g).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    )
    return query, key, value


def attended(leaves: tuple[Tensor, ...]) -> Tensor:
    out, _ = row_attention(nn.Identity(), *leaves, None, row_lengths=LENGTHS)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_training_in_half_precision_on_cpu_attends_in_full_precision(
    dtype: torch.dtype, *, autocast: bool
) -> None:
    leaves = inputs(dtype)
    wide = tuple(x.detach().float().requires_grad_() for x in leaves)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = attended(leaves)
    exact = attended(wide)
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype), rtol=0, atol=0)
    up = torch.ones_like(exact)
    got = torch.autograd.grad(out, leaves, up.to(dtype))
    for gradient, true in zip(got, torch.autograd.grad(exact, wide, up), strict=True):
        torch.testing.assert_close(gradient, true.to(dtype), rtol=0, atol=0)
