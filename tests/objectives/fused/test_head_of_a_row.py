"""Adaptive KL's head, found without sorting the row, is the one a sort finds."""

import pytest
import torch

from tutelage.objectives.row_kernels.kl import _head


@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 30.0])
@pytest.mark.parametrize("head_mass", [0.01, 0.5, 0.99])
def test_the_head_is_the_one_a_sort_finds(spread: float, head_mass: float) -> None:
    p = (torch.randn(3000, dtype=torch.float64) * spread).softmax(-1)
    in_order, order = p.sort(descending=True, stable=True)
    size = max(int((in_order.cumsum(0) <= head_mass).sum()), 1)
    assert _head(p, head_mass).tolist() == order[:size].tolist()
