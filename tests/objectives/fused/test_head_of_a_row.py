"""Adaptive KL's head, found without sorting the row, is the one a sort finds."""

import pytest
import torch

from tutelage.objectives.row_kernels.kl import row_head


def head_of(p: torch.Tensor, head_mass: float) -> list[int]:
    above, edge = row_head(p, head_mass)
    return sorted([*(p > above).nonzero()[:, 0].tolist(), *edge.tolist()])


@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 30.0])
@pytest.mark.parametrize("head_mass", [0.01, 0.5, 0.99])
def test_the_head_is_the_one_a_sort_finds(spread: float, head_mass: float) -> None:
    p = (torch.randn(3000, dtype=torch.float64) * spread).softmax(-1)
    in_order, order = p.sort(descending=True, stable=True)
    size = max(int((in_order.cumsum(0) <= head_mass).sum()), 1)
    assert head_of(p, head_mass) == sorted(order[:size].tolist())


@pytest.mark.parametrize("head_mass", [0.0005, 0.3005, 0.7005])
def test_among_equal_entries_the_first_are_taken(head_mass: float) -> None:
    p = torch.full((1000,), 1e-3, dtype=torch.float64)
    assert head_of(p, head_mass) == list(range(max(int(head_mass * 1000), 1)))


def test_one_entry_with_all_the_mass_is_the_head() -> None:
    p = torch.zeros(500, dtype=torch.float64)
    p[123] = 1.0
    assert head_of(p, 0.5) == [123]
