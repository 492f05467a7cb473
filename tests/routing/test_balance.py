import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tutelage.routing import (
    Sign,
    advantage_sums,
    assignment_counts,
    capped,
    expert_advantage,
    expert_load,
    importance_cv_squared,
    loss_free_bias,
    max_violation,
    moved_bias,
    moving_average,
    num_dead,
    router_entropy,
    switch_loss,
    without_start,
)


def chosen_of(scores: Tensor, num_slots: int) -> Tensor:
    return scores.topk(num_slots, dim=-1).indices


def random_choices(*, tokens: int = 40, experts: int = 6, num_slots: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return chosen_of(torch.randn(tokens, experts, generator=generator), num_slots)


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_load_adds_up_to_one_however_many_experts_a_token_has(num_slots: int) -> None:
    counts = assignment_counts(random_choices(num_slots=num_slots), num_experts=6)
    assert float(counts.sum()) == 40 * num_slots
    load = expert_load(counts)
    assert float(load.sum()) == pytest.approx(1.0)
    assert max_violation(torch.full((2, 6), 1 / 6)).tolist() == pytest.approx([0.0, 0.0])


def test_only_the_counted_tokens_load_an_expert() -> None:
    chosen = torch.tensor([[0, 1], [2, 3], [2, 0]])
    counted = torch.tensor([True, False, True])
    counts = assignment_counts(chosen, num_experts=5, counted=counted)
    assert counts.tolist() == [2, 1, 1, 0, 0]
    assert int(num_dead(counts)) == 2
    assert expert_load(torch.zeros(4)).tolist() == [0.25] * 4


def test_one_expert_alone_violates_as_much_as_can_be() -> None:
    assert float(max_violation(torch.tensor([0.0, 1.0, 0.0, 0.0]))) == 3.0


def test_entropy_is_nothing_when_certain_and_the_logarithm_when_undecided() -> None:
    certain_then_not = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert router_entropy(certain_then_not).tolist() == pytest.approx([0.0, math.log(4)])


def test_an_experts_advantage_is_the_mean_over_what_it_was_given() -> None:
    chosen = torch.tensor([[0, 1], [0, 2], [1, 2]])
    counted = torch.tensor([True, True, False])
    advantages = torch.tensor([1.0, -3.0, math.nan])
    sums = advantage_sums(chosen, advantages, num_experts=4, counted=counted)
    counts = assignment_counts(chosen, num_experts=4, counted=counted)
    assert expert_advantage(sums, counts).tolist() == [-1.0, 1.0, -3.0, 0.0]


def test_a_constant_is_its_own_average_from_the_first_update_on() -> None:
    average = torch.zeros(3)
    value = torch.tensor([1.0, -2.0, 0.5])
    for update in range(1, 6):
        average = moving_average(average, value, weight=0.2)
        corrected = without_start(average, weight=0.2, num_updates=update)
        torch.testing.assert_close(corrected, value)
    assert average.tolist() == pytest.approx((value * (1 - 0.8**5)).tolist())


def test_even_load_without_advantage_moves_no_bias() -> None:
    bias = torch.tensor([0.3, -0.1, 0.0, 0.2])
    even = torch.full((4,), 0.25)
    for sign in ("intended", "literal"):
        moved = moved_bias(
            bias, even, torch.zeros(4), balance_rate=0.01, reward_rate=0.05, sign=sign
        )
        assert moved.equal(bias)


def test_signs_differ_in_the_load_alone() -> None:
    load, advantage = torch.tensor([0.75, 0.25]), torch.tensor([0.0, 1.0])
    rates = {"balance_rate": 0.1, "reward_rate": 0.5}
    zero = torch.zeros(2)
    moved = moved_bias(zero, load, advantage, **rates)
    assert moved.tolist() == pytest.approx([-0.025, 0.525])
    literal = moved_bias(zero, load, advantage, **rates, sign="literal")
    assert literal.tolist() == pytest.approx([0.025, 0.475])


def test_the_cap_takes_the_mean_off_first() -> None:
    assert capped(torch.tensor([5.0, 5.5, 4.5]), most=0.25).tolist() == [0.0, 0.25, -0.25]


# Sixteen experts, two a token: as in the specification, whose router starts at a MaxVio of 1.43.
def simulated(step: Callable[[Tensor, Tensor], Tensor], num_updates: int = 600) -> list[float]:
    """MaxVio at the start and at the end, and the dead experts at the end."""
    generator = torch.Generator().manual_seed(0)
    tokens, tilt = torch.randn(2048, 16, generator=generator), torch.linspace(-0.7, 0.7, 16)
    bias = torch.zeros(16)

    def counts() -> Tensor:
        return assignment_counts(chosen_of(tokens + tilt + bias, 2), num_experts=16)

    first = float(max_violation(expert_load(counts())))
    for _ in range(num_updates):
        bias = step(bias, counts())
    last = counts()
    return [first, float(max_violation(expert_load(last))), float(num_dead(last))]


def padd(rate: float, sign: Sign) -> Callable[[Tensor, Tensor], Tensor]:
    def step(bias: Tensor, counts: Tensor) -> Tensor:
        nothing = torch.zeros_like(counts)
        rates: dict[str, Any] = {"balance_rate": rate, "reward_rate": 0.05, "sign": sign}
        return moved_bias(bias, expert_load(counts), nothing, **rates)

    return step


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_the_intended_sign_balances_and_the_printed_one_kills_all_experts_but_two(
    rate: float,
) -> None:
    first, last, dead = simulated(padd(rate, "intended"))
    assert 1.0 < first < 2.0
    assert last < 0.15
    assert dead == 0
    assert simulated(padd(rate, "literal"))[1:] == [7.0, 14.0]


def test_at_the_papers_rate_the_signs_part_slowly() -> None:
    first, better, _ = simulated(padd(0.01, "intended"))
    _, worse, _ = simulated(padd(0.01, "literal"))
    assert better < 0.7 * first
    assert worse > 1.5 * first


def test_loss_free_balancing_evens_the_load_out() -> None:
    first, last, dead = simulated(lambda b, c: loss_free_bias(b, c, rate=0.005))
    assert last < 0.1 * first
    assert dead == 0
    even = torch.full((3,), 7.0)
    assert loss_free_bias(torch.zeros(3), even, rate=0.1).eq(0).all()


def test_a_lasting_advantage_settles_where_the_specification_says() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(40_000, 4, generator=generator)
    advantage = torch.tensor([0.01, -0.01, 0.0, 0.0])
    bias = torch.zeros(4)
    for _ in range(400):
        load = expert_load(assignment_counts(chosen_of(tokens + bias, 1), num_experts=4))
        bias = moved_bias(bias, load, advantage, balance_rate=0.1, reward_rate=0.5)
    assert load.tolist() == pytest.approx([0.3, 0.2, 0.25, 0.25], abs=0.003)


def test_the_switch_loss_is_that_of_transformers_over_all_layers() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(3, 50, 8, generator=generator, requires_grad=True)
    theirs = load_balancing_loss_func(tuple(scores), 8, 2)
    probabilities = scores.softmax(dim=-1).flatten(0, 1)
    ours = switch_loss(probabilities, chosen_of(probabilities, 2))
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, scores, retain_graph=True),
        torch.autograd.grad(theirs, scores),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_ends_of_the_switch_loss() -> None:
    even, chosen = torch.full((4, 4), 0.25), torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    assert float(switch_loss(even, chosen)) == pytest.approx(2.0)
    one = torch.eye(4)[[0, 0, 0, 0]]
    assert float(switch_loss(one, torch.zeros(4, 1, dtype=torch.long))) == pytest.approx(4.0)


def test_importance_varies_by_its_definition() -> None:
    assert float(importance_cv_squared(torch.full((5, 4), 0.25))) == pytest.approx(0.0)
    probabilities = torch.tensor([[0.7, 0.3], [0.5, 0.5]])
    assert float(importance_cv_squared(probabilities)) == pytest.approx(0.08)
