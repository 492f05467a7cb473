"""The cheapest assignment with sizes, beside scipy's and by its own certificate."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tutelage.students.clustering import balanced_assignment


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, list[int]]:
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cost = torch.randn(sum(sizes), len(sizes), generator=generator)
    if draw(st.booleans()):
        # Ties everywhere.
        cost = cost.round()
    return cost, sizes


def least_sum(cost: torch.Tensor, sizes: list[int]) -> float:
    seats = np.repeat(cost.double().numpy(), sizes, axis=1)
    rows, columns = linear_sum_assignment(seats)
    return float(seats[rows, columns].sum())


@given(problems())
def test_sizes_are_kept_and_the_sum_is_the_least_there_is(problem) -> None:
    cost, sizes = problem
    place, _ = balanced_assignment(cost, sizes)
    assert torch.bincount(place, minlength=len(sizes)).tolist() == sizes
    total = float(cost.double().gather(1, place[:, None]).sum())
    assert abs(total - least_sum(cost, sizes)) < 1e-9 * max(1.0, cost.abs().sum().item())


@given(problems())
def test_at_the_prices_nobody_would_rather_be_elsewhere(problem) -> None:
    cost, sizes = problem
    place, prices = balanced_assignment(cost, sizes)
    paid = cost.double() + prices
    # A place that nobody may enter has no price that means anything.
    open_ = torch.tensor(sizes) > 0
    regret = paid.gather(1, place[:, None])[:, 0] - paid[:, open_].amin(dim=1)
    assert float(regret.max()) < 1e-9


@given(problems(), st.integers(0, 2**31))
def test_old_prices_change_the_time_and_not_the_sum(problem, seed: int) -> None:
    cost, sizes = problem
    prices = 3 * torch.randn(len(sizes), generator=torch.Generator().manual_seed(seed))
    place, _ = balanced_assignment(cost, sizes, prices)
    total = float(cost.double().gather(1, place[:, None]).sum())
    assert abs(total - least_sum(cost, sizes)) < 1e-9 * max(1.0, cost.abs().sum().item())
    again, _ = balanced_assignment(cost, sizes, prices)
    assert torch.equal(place, again)


def test_a_crowd_that_all_wants_one_place_is_still_seated_at_least_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(300, 12, generator=generator)
    cost[:, 0] -= 5
    sizes = [25] * 12
    place, _ = balanced_assignment(cost, sizes)
    total = float(cost.double().gather(1, place[:, None]).sum())
    assert torch.bincount(place).tolist() == sizes
    assert abs(total - least_sum(cost, sizes)) < 1e-6
