import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tutelage.routing import expert_consistency, routing_shift


def routed(
    *, layers: int = 3, tokens: int = 5, experts: int = 4, seed: int = 0, scale: float = 2.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(layers, tokens, experts, generator=generator, dtype=torch.float64)
    return list(scores.softmax(dim=-1))


def test_the_shift_is_its_definition_one_float_at_a_time() -> None:
    new, old = routed(seed=1), routed(seed=2)
    slow = [
        sum(
            math.sqrt(sum((a - b) ** 2 for a, b in zip(*rows, strict=True)))
            for rows in zip(
                *[[layer[at].tolist() for layer in side] for side in (new, old)], strict=True
            )
        )
        / len(new)
        for at in range(5)
    ]
    assert routing_shift(new, old).tolist() == pytest.approx(slow, rel=1e-12)


@given(st.integers(0, 10_000), st.floats(0.1, 60.0), st.integers(1, 6))
def test_the_shift_lies_between_nothing_and_the_square_root_of_two(
    seed: int, scale: float, layers: int
) -> None:
    new, old = (routed(seed=seed + at, scale=scale, layers=layers) for at in (0, 1))
    shift = routing_shift(new, old)
    assert (shift >= 0).all()
    assert (shift <= math.sqrt(2) + 1e-12).all()
    torch.testing.assert_close(shift, routing_shift(old, new))


def test_certain_routers_that_disagree_are_as_far_apart_as_can_be() -> None:
    one, other = (torch.eye(4, dtype=torch.float64)[[at, at]] for at in (0, 3))
    assert routing_shift([one], [other]).tolist() == pytest.approx([math.sqrt(2)] * 2)


def test_unmoved_routing_and_a_constant_on_all_scores_give_no_shift() -> None:
    scores = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3))
    old = list(scores.softmax(dim=-1))
    assert routing_shift(old, old).eq(0).all()
    lifted = list((scores + 4.0).softmax(dim=-1))
    torch.testing.assert_close(routing_shift(lifted, old), torch.zeros(6), atol=1e-6, rtol=0)


def test_layers_are_averaged_not_added() -> None:
    new, old = routed(seed=1, layers=1), routed(seed=2, layers=1)
    torch.testing.assert_close(routing_shift(new * 4, old * 4), routing_shift(new, old))


def test_no_gradient_flows_through_the_shift() -> None:
    scores = torch.randn(4, 3, requires_grad=True)
    shift = routing_shift([scores.softmax(dim=-1)], [torch.full((4, 3), 1 / 3)])
    assert not shift.requires_grad


def test_half_precision_is_compared_in_float32() -> None:
    old = [torch.tensor([[0.5, 0.5]], dtype=torch.bfloat16)]
    assert routing_shift(old, old).dtype == torch.float32


@pytest.mark.parametrize("layers", [0, 2])
def test_other_numbers_of_layers_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match="layers"):
        routing_shift(routed(layers=layers) if layers else [], routed(layers=3 if layers else 1))


def test_experts_that_keep_their_layers_are_consistent() -> None:
    old = routed(seed=4)
    torch.testing.assert_close(expert_consistency(old, old), torch.ones(4, dtype=torch.float64))
    turned = expert_consistency(old[::-1], old)
    assert (turned < 1).any()


def test_consistency_is_the_cosine_over_layers() -> None:
    old = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    assert expert_consistency(old[::-1], old).tolist() == pytest.approx([0.0, 0.0])
