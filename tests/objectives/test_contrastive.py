"""DistiLLM-2's pair: shares that follow the gap between the two models, row by row."""

import math

import pytest
import torch

from tests.objectives.pairs import random_pair
from tutelage.objectives.divergences import (
    adaptive_share,
    contrastive_pair,
    sequence_gap,
    skew_forward_kl,
    skew_reverse_kl,
    student_text_weight,
)


def test_the_gap_is_between_mean_likelihoods_of_the_trained_tokens() -> None:
    leader = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.9, 0.9]]).log().requires_grad_()
    follower = torch.tensor([[0.2, 0.05, 0.9], [0.1, 0.1, 0.1]]).log()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    gap = sequence_gap(leader, follower, mask)
    assert gap.tolist() == pytest.approx([0.5 - 0.1, 0.0], abs=1e-6)
    assert not gap.requires_grad


def test_shares_are_small_while_the_gap_is_wide_and_never_leave_their_range() -> None:
    gap = torch.tensor([0.4, 0.37, 0.1, -0.2, -1e-5])
    shares = adaptive_share(gap, first_gap=0.4, base_share=0.1)
    between = 1 - 0.9 * 0.4 / (0.37 + 1e-5)
    assert shares[:4].tolist() == pytest.approx([0.1, between, 0.01, 0.1], abs=1e-6)
    assert 0.01 < between < 0.1
    assert shares.isfinite().all()


def test_the_students_text_counts_once_or_up_to_half_more() -> None:
    assert student_text_weight(0.3) == 1
    ramp = [student_text_weight(done, ramp=True) for done in (0.0, 0.25, 0.5, 1.0)]
    assert ramp == [1.0, 1.25, 1.5, 1.5]


def test_the_pair_shares_out_two_units_of_weight() -> None:
    one, other = torch.tensor(3.0), torch.tensor(5.0)
    assert contrastive_pair(one, other).item() == 8
    assert contrastive_pair(one, other, weight=1.5).item() == pytest.approx(0.5 * 3 + 1.5 * 5)


def test_skewed_divergences_take_a_share_for_each_position() -> None:
    student, teacher = (scores.log_softmax(-1) for scores in random_pair(3, 6))
    shares = torch.tensor([0.01, 0.05, 0.1], dtype=torch.float64)
    forward = skew_forward_kl(student, teacher, teacher_share=shares)
    reverse = skew_reverse_kl(student, teacher, student_share=shares)
    for i, share in enumerate(shares.tolist()):
        alone = student[i], teacher[i]
        torch.testing.assert_close(forward[i], skew_forward_kl(*alone, teacher_share=share))
        torch.testing.assert_close(reverse[i], skew_reverse_kl(*alone, student_share=share))
    assert math.isfinite(forward.sum().item())
