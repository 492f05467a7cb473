"""Weights of tokens: what is still to come, how stale they are, and where they stand."""

import itertools

import pytest
import torch
from torch import Tensor

from tutelage.core.targets import Head, LogitsTarget
from tutelage.objectives import (
    importance_weights,
    position_weights,
    return_to_go,
    sequence_importance_weights,
    token_weights,
    without_first,
    without_ids,
)
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.fused import fused_loss

ROW_OF = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
MASK = torch.tensor([True, True, True, True, True, False, True, True])


def by_hand(costs: Tensor, discount: float) -> list[float]:
    return [
        sum(
            discount ** (k - n) * float(costs[k])
            for k in range(n, len(costs))
            if ROW_OF[k] == ROW_OF[n]
        )
        for n in range(len(costs))
    ]


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_return_is_the_discounted_rest_of_its_own_row(
    discount: float, dtype: torch.dtype
) -> None:
    costs = torch.randn(8).to(dtype)
    found = return_to_go(costs, ROW_OF, discount=discount)
    assert found.tolist() == pytest.approx(by_hand(costs, discount), abs=1e-5)
    assert return_to_go(costs[:0], ROW_OF[:0], discount=discount).shape == (0,)


def test_a_return_carries_no_gradient_and_leaves_its_costs_alone() -> None:
    costs = torch.ones(8, requires_grad=True)
    assert not return_to_go(costs, ROW_OF, discount=1.0).requires_grad
    assert (costs == 1).all()


def completions(table: Tensor) -> tuple[Tensor, Tensor]:
    """All completions of three tokens out of two, and each token's row of scores by its prefix."""
    every = torch.tensor(list(itertools.product(range(2), repeat=3)))
    place = torch.stack([torch.zeros(8).long(), 1 + every[:, 0], 3 + 2 * every[:, 0] + every[:, 1]])
    return every, table[place.T]


def gradient_by_returns(student: Tensor, teacher: Tensor, discount: float) -> Tensor:
    """Over all completions exactly: returns as weights of cross-entropy, through the fused loss."""
    table = student.clone().requires_grad_()
    every, scores = completions(table)
    with torch.no_grad():
        logp = scores.log_softmax(-1).gather(-1, every[..., None])[..., 0]
        _, taught = completions(teacher)
        costs = logp - taught.log_softmax(-1).gather(-1, every[..., None])[..., 0]
        row_of = torch.arange(8).repeat_interleave(3)
        returns = return_to_go(costs.flatten(), row_of, discount=discount)
        weights = -returns * logp.sum(-1).exp().repeat_interleave(3)
    out = fused_loss(
        scores.reshape(24, 2),
        Head(weight=torch.eye(2, dtype=torch.float64)),
        LogitsTarget(logits=taught.reshape(24, 2), labels=every.flatten()),
        CrossEntropy(labels="tokens"),
        token_weights=weights,
    )
    return torch.autograd.grad(out.loss, table)[0]


def test_undiscounted_returns_give_the_gradient_of_reverse_kl_between_whole_completions() -> None:
    student, teacher = torch.randn(2, 7, 2, dtype=torch.float64)
    table = student.clone().requires_grad_()
    every, scores = completions(table)
    q = scores.log_softmax(-1).gather(-1, every[..., None]).sum((-1, -2))
    _, taught = completions(teacher)
    p = taught.log_softmax(-1).gather(-1, every[..., None]).sum((-1, -2))
    (whole,) = torch.autograd.grad((q.exp() * (q - p)).sum(), table)
    torch.testing.assert_close(gradient_by_returns(student, teacher, 1.0), whole)
    assert (gradient_by_returns(student, teacher, 0.0) - whole).abs().max() > 1e-3


def test_without_looking_ahead_they_give_that_of_reverse_kl_token_by_token() -> None:
    student, teacher = torch.randn(2, 7, 2, dtype=torch.float64)
    table = student.clone().requires_grad_()
    every, scores = completions(table)
    _, taught = completions(teacher)
    lq, lp = scores.log_softmax(-1), taught.log_softmax(-1)
    reached = lq.detach().gather(-1, every[..., None])[..., 0].sum(-1).exp()
    (local,) = torch.autograd.grad((reached[:, None] * (lq.exp() * (lq - lp)).sum(-1)).sum(), table)
    torch.testing.assert_close(gradient_by_returns(student, teacher, 0.0), local)


def test_a_student_that_has_not_moved_has_importance_one() -> None:
    logp = -torch.rand(8)
    assert (importance_weights(logp, logp) == 1).all()
    assert (sequence_importance_weights(logp, logp, ROW_OF) == 1).all()


def test_importance_is_the_ratio_bounded_above() -> None:
    now, then = torch.tensor([-1.0, -2.0, -0.1]), torch.tensor([-1.5, -1.0, -3.0])
    ratio = (now - then).exp()
    found = importance_weights(now.requires_grad_(), then)
    torch.testing.assert_close(found, torch.tensor([float(ratio[0]), float(ratio[1]), 2.0]))
    assert not found.requires_grad
    dropped = importance_weights(now, then, outside="drop")
    torch.testing.assert_close(dropped, torch.tensor([float(ratio[0]), float(ratio[1]), 0.0]))
    assert importance_weights(now, then, highest=100.0)[2] > 2


def test_capped_at_nothing_importance_makes_a_stale_draw_fair() -> None:
    now, then = torch.randn(2, 5).double().log_softmax(-1)
    values = torch.randn(5).double()
    weights = importance_weights(now, then, highest=1e9)
    torch.testing.assert_close((then.exp() * weights * values).sum(), (now.exp() * values).sum())


def test_a_completions_importance_is_the_product_of_its_tokens() -> None:
    now, then = -torch.rand(2, 8).double()
    found = sequence_importance_weights(now, then, ROW_OF, highest=1e9)
    for row in range(3):
        product = (now - then)[row == ROW_OF].sum().exp()
        torch.testing.assert_close(found[row == ROW_OF], product.expand_as(found[row == ROW_OF]))
    assert sequence_importance_weights(now, then, ROW_OF, highest=0.5).max() <= 0.5


def test_skipping_the_first_tokens_or_some_ids_changes_what_is_counted() -> None:
    offsets = torch.tensor([0, 1, 2, 0, 0, 1, 2, 3])
    assert without_first(MASK, offsets, num_skipped=0).tolist() == MASK.tolist()
    kept = without_first(MASK, offsets, num_skipped=1)
    assert kept.tolist() == [False, True, True, False, False, False, True, True]
    weights = token_weights(kept, ROW_OF, reduction="sequence_mean", num_tokens=4, num_rows=2)
    torch.testing.assert_close(weights, torch.tensor([0, 0.25, 0.25, 0, 0, 0, 0.25, 0.25]))
    labels = torch.tensor([9, 3, 4, 9, 5, 6, 7, 9])
    assert without_ids(MASK, labels, [9]).tolist() == (MASK & (labels != 9)).tolist()
    assert without_ids(MASK, labels, []).tolist() == MASK.tolist()


@pytest.mark.parametrize("slope", [-1.0, -0.5, 0.0, 0.8])
def test_position_weights_lean_one_way_and_leave_each_rows_mean_alone(slope: float) -> None:
    found = position_weights(MASK, ROW_OF, slope=slope)
    torch.testing.assert_close(found[:3], torch.tensor([1 - slope, 1.0, 1 + slope]))
    assert found[3] == 1
    torch.testing.assert_close(found[[4, 6, 7]], torch.tensor([1 - slope, 1.0, 1 + slope]))
    for row in range(3):
        assert found[MASK & (row == ROW_OF)].mean().item() == pytest.approx(1)
