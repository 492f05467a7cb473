import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tutelage.routing import (
    expert_class_counts,
    expert_specialisation,
    mutual_information,
    normalised_mutual_information,
)


def slow_information(counts: Tensor) -> float:
    table = counts.tolist()
    total = sum(map(sum, table))
    rows, columns = (
        [sum(row) for row in table],
        [sum(column) for column in zip(*table, strict=True)],
    )
    return sum(
        value / total * math.log(value * total / (rows[i] * columns[j]))
        for i, row in enumerate(table)
        for j, value in enumerate(row)
        if value
    )


def test_counts_are_of_assignments_and_leave_out_what_has_no_class() -> None:
    chosen, classes = torch.tensor([[0, 1], [0, 2], [1, 2]]), torch.tensor([1, 0, -1])
    counts = expert_class_counts(chosen, classes, num_experts=3, num_classes=2)
    assert counts.tolist() == [[1, 1], [0, 1], [1, 0]]


def test_each_class_with_its_own_expert_is_aligned_in_full() -> None:
    counts = torch.diag(torch.tensor([3.0, 3.0, 3.0], dtype=torch.float64))
    assert float(normalised_mutual_information(counts)) == pytest.approx(1.0)
    assert float(expert_specialisation(counts)) == pytest.approx(math.log(3))


def test_experts_that_do_not_care_are_not_aligned() -> None:
    counts = torch.outer(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, 4.0])).double()
    assert float(normalised_mutual_information(counts)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_one_class_or_one_expert_tells_nothing(shape: tuple[int, int]) -> None:
    assert float(normalised_mutual_information(torch.ones(shape, dtype=torch.float64))) == 0.0


@given(st.integers(0, 10_000))
def test_the_two_indices_are_one_number_in_two_sizes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (5, 3), generator=generator).double()
    counts[0] += 1
    expected = slow_information(counts)
    assert float(mutual_information(counts)) == pytest.approx(expected, abs=1e-12)
    assert float(expert_specialisation(counts)) == pytest.approx(expected, abs=1e-12)
    shares = counts / counts.sum()
    size = math.sqrt(
        torch.special.entr(shares.sum(0)).sum() * torch.special.entr(shares.sum(1)).sum()
    )
    together = float(normalised_mutual_information(counts)) * size
    assert together == pytest.approx(expected, abs=1e-12)


def test_layers_are_measured_one_by_one() -> None:
    counts = torch.randint(0, 9, (4, 5, 3), generator=torch.Generator().manual_seed(1)).double()
    together = expert_specialisation(counts)
    assert together.tolist() == pytest.approx([float(expert_specialisation(c)) for c in counts])
