"""Advantages within a group: the definition, its laws, its edges."""

import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tutelage.core.errors import ConfigError, DataError, NumericsError
from tutelage.rewards import group_advantages

REWARD = st.floats(-1e3, 1e3, width=32)
CHOICES = st.fixed_dictionaries(
    {
        "normalise": st.sampled_from(["std", "none"]),
        "deviation": st.sampled_from(["population", "sample"]),
        "eps": st.sampled_from([0.0, 1e-6, 1e-4, 1.0]),
    }
)


@st.composite
def groups(draw: st.DrawFn, reward: st.SearchStrategy[float] = REWARD) -> tuple[Tensor, Tensor]:
    """Groups of 2 to 6, under numbers with gaps, in any order."""
    names = draw(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4, unique=True))
    owners = draw(st.permutations([n for n in names for _ in range(draw(st.integers(2, 6)))]))
    rewards = draw(st.lists(reward, min_size=len(owners), max_size=len(owners)))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(owners)


def slow_advantages(
    rewards: list[float], owners: list[int], *, normalise: str, deviation: str, eps: float
) -> list[float]:
    """The definition, one Python float at a time."""
    answers: list[float] = []
    spread_of = statistics.pstdev if deviation == "population" else statistics.stdev
    for reward, owner in zip(rewards, owners, strict=True):
        group = [r for r, o in zip(rewards, owners, strict=True) if o == owner]
        if min(group) == max(group):
            answers.append(0.0)
            continue
        difference = reward - statistics.fmean(group)
        answers.append(difference / (spread_of(group) + eps if normalise == "std" else 1))
    return answers


@given(groups(st.integers(-8, 8).map(lambda n: n / 4)), CHOICES)
def test_advantages_are_their_definition(pair: tuple[Tensor, Tensor], how: dict[str, Any]) -> None:
    rewards, owners = pair
    slow = slow_advantages(rewards.tolist(), owners.tolist(), **how)
    assert group_advantages(*pair, **how).tolist() == pytest.approx(slow, abs=1e-9)


@given(groups(), CHOICES)
def test_the_advantages_of_a_group_cancel_and_keep_the_order_of_its_rewards(
    pair: tuple[Tensor, Tensor], how: dict[str, Any]
) -> None:
    rewards, owners = pair
    found = group_advantages(*pair, **how)
    for owner in owners.unique():
        own = found[owners == owner]
        assert own.sum().item() == pytest.approx(0, abs=1e-6 * (1 + own.abs().max().item()))
        order = rewards[owners == owner].argsort(stable=True)
        assert (own[order].diff() >= 0).all()


@given(groups(st.sampled_from([0.0, 1.0, 0.1, -3.0])), st.floats(0.5, 4.0), st.floats(-9.0, 9.0))
def test_shifting_rewards_changes_nothing_and_scaling_changes_only_differences(
    pair: tuple[Tensor, Tensor], scale: float, shift: float
) -> None:
    rewards, owners = pair
    moved = rewards * scale + shift
    std = [group_advantages(r, owners, eps=0.0) for r in (rewards, moved)]
    none = [group_advantages(r, owners, normalise="none") for r in (rewards, moved)]
    # Without eps rounding alone can part rewards that were equal; these are apart or the same.
    torch.testing.assert_close(std[1], std[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(none[1], none[0] * scale, rtol=1e-6, atol=1e-9)


@given(groups(), CHOICES, st.randoms(use_true_random=False))
def test_the_order_of_rollouts_and_the_numbers_of_groups_do_not_matter(
    pair: tuple[Tensor, Tensor], how: dict[str, Any], chance: Any
) -> None:
    rewards, owners = pair
    order = list(range(len(rewards)))
    chance.shuffle(order)
    found = group_advantages(*pair, **how)
    shuffled = group_advantages(rewards[order], owners[order] * 3 + 5, **how)
    torch.testing.assert_close(shuffled, found[order])


@given(groups(), groups(), CHOICES)
def test_one_group_knows_nothing_of_another(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], how: dict[str, Any]
) -> None:
    apart = first[1], second[1] + 2**50
    together = group_advantages(torch.cat([first[0], second[0]]), torch.cat(apart), **how)
    alone = torch.cat([group_advantages(*first, **how), group_advantages(*second, **how)])
    torch.testing.assert_close(together, alone)


@given(REWARD, st.integers(2, 9), st.sampled_from([torch.float32, torch.float64]), CHOICES)
def test_equal_rewards_give_zeros_exactly(
    reward: float, size: int, dtype: torch.dtype, how: dict[str, Any]
) -> None:
    rewards = torch.full((size,), reward / 3, dtype=dtype)
    found = group_advantages(rewards, torch.zeros(size, dtype=torch.long), **how)
    assert found.tolist() == [0.0] * size
    assert found.dtype == dtype


def test_one_right_answer_among_eight_has_the_known_size() -> None:
    rewards, owners = torch.tensor([1.0] + [0.0] * 7), torch.zeros(8, dtype=torch.long)
    population = group_advantages(rewards, owners, eps=0.0)
    sample = group_advantages(rewards, owners, deviation="sample", eps=0.0)
    assert population[0].item() == pytest.approx(math.sqrt(7))
    assert sample[0].item() == pytest.approx(7 / 8 / math.sqrt(1 / 8))
    assert group_advantages(rewards, owners, normalise="none")[0].item() == 0.875


def test_huge_rewards_do_not_overflow_and_no_rewards_are_no_advantages() -> None:
    owners = torch.zeros(2, dtype=torch.long)
    found = group_advantages(torch.tensor([3e38, -3e38]), owners)
    assert found.tolist() == [1.0, -1.0]
    nothing = group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert nothing.shape == (0,)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="one rollout in group 5; it must be at least 2"):
        group_advantages(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([2, 5, 2]))
    with pytest.raises(NumericsError, match="rewards has nan"):
        group_advantages(torch.tensor([1.0, math.nan]), torch.tensor([0, 0]))
    with pytest.raises(ConfigError, match=r"eps is -1\.0"):
        group_advantages(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), eps=-1.0)
