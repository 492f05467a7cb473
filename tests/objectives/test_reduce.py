"""The only mean: how a step is cut changes nothing, and nothing trained is no accident."""

import math

import pytest
import torch
from torch import Tensor

from tutelage.objectives import sequence_mean, token_mean, token_weights

ROW_OF = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
MASK = torch.tensor([True, True, False, True, True, False, True, True, True])


def nats(*, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(9, generator=generator).requires_grad_()


def test_a_constant_loss_is_its_own_mean_whatever_the_number_of_tokens() -> None:
    for count in (1, 7, 100):
        per_token, mask = torch.full((count,), 0.25), torch.ones(count, dtype=torch.bool)
        assert token_mean(per_token, mask, num_tokens=count).item() == pytest.approx(0.25)
        rows = torch.zeros(count, dtype=torch.int64)
        assert sequence_mean(per_token, mask, rows, num_rows=1).item() == pytest.approx(0.25)


def test_the_token_mean_counts_tokens_and_the_sequence_mean_rows() -> None:
    per_token = torch.tensor([1.0, 2.0, 9.0, 4.0, 6.0, 9.0, 3.0, 3.0, 3.0])
    assert token_mean(per_token, MASK, num_tokens=7).item() == pytest.approx(22 / 7)
    by_row = (1.5 + 5 + 3) / 3
    assert sequence_mean(per_token, MASK, ROW_OF, num_rows=3).item() == pytest.approx(by_row)


@pytest.mark.parametrize("num_tokens", [7, torch.tensor(7)])
def test_untrained_tokens_weigh_exactly_nothing_even_when_they_are_nan(
    num_tokens: int | Tensor,
) -> None:
    per_token = torch.where(MASK, 1.0, math.nan).requires_grad_()
    loss = token_mean(per_token, MASK, num_tokens=num_tokens)
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert per_token.grad is not None
    torch.testing.assert_close(per_token.grad, MASK / 7)


def test_cutting_a_step_into_micro_batches_changes_neither_loss_nor_gradient() -> None:
    per_token = nats()
    whole = token_mean(per_token, MASK, num_tokens=7)
    cut = [token_mean(per_token[s], MASK[s], num_tokens=7) for s in (slice(0, 3), slice(3, 9))]
    torch.testing.assert_close(sum(cut), whole)
    by_row = sequence_mean(per_token, MASK, ROW_OF, num_rows=3)
    rows_cut = [
        sequence_mean(per_token[s], MASK[s], ROW_OF[s] - ROW_OF[s][0], num_rows=3)
        for s in (slice(0, 3), slice(3, 9))
    ]
    torch.testing.assert_close(sum(rows_cut), by_row)


def test_padding_on_either_side_changes_nothing() -> None:
    per_token, mask = nats().detach(), MASK
    padded = torch.cat([torch.full((2,), 5.0), per_token, torch.full((3,), math.inf)])
    padded_mask = torch.cat([torch.zeros(2).bool(), mask, torch.zeros(3).bool()])
    torch.testing.assert_close(
        token_mean(padded, padded_mask, num_tokens=7), token_mean(per_token, mask, num_tokens=7)
    )
    square = token_mean(padded.view(2, 7), padded_mask.view(2, 7), num_tokens=7)
    torch.testing.assert_close(square, token_mean(per_token, mask, num_tokens=7))


def test_nothing_trained_is_a_zero_that_can_be_differentiated() -> None:
    nothing = torch.zeros(9, dtype=torch.bool)
    for loss_of in (
        lambda x: token_mean(x, nothing, num_tokens=0),
        lambda x: token_mean(x, nothing, num_tokens=torch.tensor(0)),
        lambda x: sequence_mean(x, nothing, ROW_OF, num_rows=0),
    ):
        per_token = nats()
        loss = loss_of(per_token)
        assert loss.item() == 0
        assert loss.requires_grad
        loss.backward()
        assert per_token.grad is not None
        assert (per_token.grad == 0).all()


def test_a_batch_without_tokens_weighs_nothing_either() -> None:
    empty = torch.zeros(0, requires_grad=True)
    mask, rows = torch.zeros(0).bool(), torch.zeros(0).long()
    assert sequence_mean(empty, mask, rows, num_rows=2).item() == 0
    assert token_weights(mask, rows, reduction="sequence_mean", num_tokens=0, num_rows=0).shape == (
        0,
    )


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_the_weights_make_the_mean(reduction: str) -> None:
    per_token = nats()
    weights = token_weights(MASK, ROW_OF, reduction=reduction, num_tokens=7, num_rows=3)
    mean = (
        token_mean(per_token, MASK, num_tokens=7)
        if reduction == "token_mean"
        else sequence_mean(per_token, MASK, ROW_OF, num_rows=3)
    )
    torch.testing.assert_close((weights * per_token).sum(), mean)
    assert (weights[~MASK] == 0).all()
    assert weights.sum().item() == pytest.approx(1)
    assert weights.dtype == torch.float32
