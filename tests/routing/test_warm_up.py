import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.routing import activity_loss, activity_shares

ALL = torch.ones(4, dtype=torch.bool)


def some(seed: int) -> torch.Tensor:
    return torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shares_add_up_and_go_from_one_expert_to_all_of_them() -> None:
    activity = torch.stack([some(1), some(2)])
    for temperature in (0.01, 0.1, 1.0, 100.0):
        shares = activity_shares(activity, temperature=temperature)
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, dtype=torch.float64))
    even = activity_shares(activity, temperature=1e6)
    torch.testing.assert_close(
        even, torch.full((2, 4), 0.25, dtype=torch.float64), rtol=1e-5, atol=0
    )
    hard = activity_shares(activity, temperature=1e-3)
    assert hard.max(dim=-1).values.tolist() == pytest.approx([1.0, 1.0])
    assert hard.argmax(dim=-1).equal(activity.argmax(dim=-1))


@given(st.integers(0, 1000))
def test_the_loss_is_the_divergence_from_the_targets_and_not_the_other_way(seed: int) -> None:
    activity, wanted = some(seed), activity_shares(some(seed + 1), temperature=0.5)
    ours = [math.exp(x / 0.5) for x in activity.tolist()]
    shares = [x / sum(ours) for x in ours]
    slow = sum(p * math.log(p / q) for p, q in zip(shares, wanted.tolist(), strict=True))
    loss = float(activity_loss(activity, wanted, temperature=0.5, active=ALL))
    assert loss == pytest.approx(slow, abs=1e-9)
    assert loss >= -1e-12


def test_experts_that_are_as_active_as_they_should_be_cost_nothing() -> None:
    wanted = activity_shares(some(1), temperature=0.1)
    assert float(activity_loss(some(1) + 3, wanted, temperature=0.1, active=ALL)) == pytest.approx(
        0
    )


def test_experts_that_were_given_nothing_are_left_out_on_both_sides() -> None:
    active = torch.tensor([True, True, False, True])
    activity = some(3).requires_grad_()
    wanted = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64)
    loss = activity_loss(activity, wanted, temperature=1.0, active=active)
    others = activity_loss(
        activity[active], wanted[active] / 0.9, temperature=1.0, active=torch.ones(3).bool()
    )
    torch.testing.assert_close(loss, others)
    (gradient,) = torch.autograd.grad(loss, activity)
    assert gradient[2] == 0
    assert gradient.isfinite().all()


def test_a_target_of_nothing_gives_a_finite_loss() -> None:
    wanted = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert math.isfinite(float(activity_loss(some(1), wanted, temperature=1.0, active=ALL)))
