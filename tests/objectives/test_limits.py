"""The ends of every range, and the relations between kinds."""

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.kinds import Case, each
from tests.objectives.pairs import golden_pair, random_pair, row, value_and_gradient
from tutelage.objectives import from_settings
from tutelage.objectives.divergences import (
    adaptive_kl,
    alpha_beta,
    alpha_mixture_logp,
    forward_kl,
    jeffreys,
    jsd,
    mixture_logp,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    todi,
    total_variation,
)


def logp_pair(*, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    student, teacher = random_pair(50, 6, seed=seed)
    return (student * scale).log_softmax(-1), (teacher * scale).log_softmax(-1)


def both(case: Case) -> tuple[Tensor, Tensor]:
    student, teacher = random_pair(20, 6)
    return value_and_gradient(from_settings(case), student / 2, teacher / 2)


SAME: list[tuple[Case, Case]] = [
    ({"kind": "jsd", "teacher_share": 0.0, "scaled": True}, {"kind": "forward_kl"}),
    ({"kind": "jsd", "teacher_share": 1.0, "scaled": True}, {"kind": "reverse_kl"}),
    ({"kind": "skew_forward_kl", "teacher_share": 0.0}, {"kind": "forward_kl"}),
    ({"kind": "skew_reverse_kl", "student_share": 0.0}, {"kind": "reverse_kl"}),
    ({"kind": "symmetric_kl", "reverse_weight": 0.0}, {"kind": "forward_kl"}),
    ({"kind": "symmetric_kl", "reverse_weight": 1.0}, {"kind": "reverse_kl"}),
    ({"kind": "alpha_beta", "alpha": 1.0, "beta": 0.0}, {"kind": "forward_kl"}),
    ({"kind": "alpha_beta", "alpha": 0.0, "beta": 1.0}, {"kind": "reverse_kl"}),
    (
        {"kind": "amid", "curve": -1.0, "teacher_share": 0.3},
        {"kind": "skew_forward_kl", "teacher_share": 0.3},
    ),
    (
        {"kind": "amid", "curve": -1.0, "teacher_share": 0.3, "between": "student_mixture"},
        {"kind": "skew_reverse_kl", "student_share": 0.7},
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_names_for_one_loss_agree_in_value_and_gradient(one: Case, other: Case) -> None:
    torch.testing.assert_close(both(one), both(other))


@each([case for pair in SAME for case in pair])
def test_rows_at_an_end_are_those_of_the_definition(case: Case) -> None:
    student, teacher = random_pair(5, 6)
    values, gradient = value_and_gradient(from_settings(case), student, teacher)
    torch.testing.assert_close(from_settings(case).rows(student, teacher, None), values)
    torch.testing.assert_close(student, gradient)


NEARLY: list[tuple[Case, Case]] = [
    ({"kind": "jsd", "teacher_share": 1e-7, "scaled": True}, {"kind": "forward_kl"}),
    ({"kind": "jsd", "teacher_share": 1 - 1e-7, "scaled": True}, {"kind": "reverse_kl"}),
    ({"kind": "skew_forward_kl", "teacher_share": 1e-7}, {"kind": "forward_kl"}),
    ({"kind": "skew_reverse_kl", "student_share": 1e-7}, {"kind": "reverse_kl"}),
    ({"kind": "alpha_beta", "alpha": 1.0, "beta": 1e-7}, {"kind": "forward_kl"}),
    ({"kind": "alpha_beta", "alpha": 1e-7, "beta": 1.0}, {"kind": "reverse_kl"}),
    (
        {"kind": "alpha_beta", "alpha": 0.0, "beta": 0.4},
        {"kind": "alpha_beta", "alpha": 1e-7, "beta": 0.4},
    ),
    (
        {"kind": "alpha_beta", "alpha": 0.3, "beta": 0.0},
        {"kind": "alpha_beta", "alpha": 0.3, "beta": 1e-7},
    ),
    ({"kind": "amid", "curve": 1 - 1e-7}, {"kind": "amid", "curve": 1.0}),
]


@pytest.mark.parametrize(("near", "end"), NEARLY)
def test_the_way_to_an_end_has_no_jump(near: Case, end: Case) -> None:
    for mine, limit in zip(both(near), both(end), strict=True):
        torch.testing.assert_close(mine, limit, rtol=2e-4, atol=2e-5)


def test_unscaled_jsd_falls_to_the_two_kls_times_its_share() -> None:
    student, teacher = logp_pair()
    low = jsd(student, teacher, teacher_share=1e-6) / 1e-6
    high = jsd(student, teacher, teacher_share=1 - 1e-6) / 1e-6
    torch.testing.assert_close(low, forward_kl(student, teacher), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(high, reverse_kl(student, teacher), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8])
def test_jsd_is_symmetric_under_exchange_of_sides_and_shares(share: float) -> None:
    student, teacher = logp_pair()
    torch.testing.assert_close(
        jsd(student, teacher, teacher_share=share),
        jsd(teacher, student, teacher_share=1 - share),
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_bounded_divergences_stay_below_their_bounds(scale: float) -> None:
    student, teacher = logp_pair(scale=scale)
    slack = 1 + 1e-12
    for share in (0.1, 0.5, 0.9):
        entropy = -share * math.log(share) - (1 - share) * math.log1p(-share)
        assert jsd(student, teacher, teacher_share=share).max() <= entropy * slack
    assert skew_forward_kl(student, teacher, teacher_share=0.1).max() <= -math.log(0.1) * slack
    assert skew_reverse_kl(student, teacher, student_share=0.2).max() <= -math.log(0.2) * slack
    assert total_variation(student, teacher).max() <= slack


def test_disjoint_models_reach_the_bounds() -> None:
    student = row([0.0, -math.inf]).log_softmax(-1)
    teacher = row([-math.inf, 0.0]).log_softmax(-1)
    assert jsd(student, teacher, teacher_share=0.5).item() == pytest.approx(math.log(2))
    assert total_variation(student, teacher).item() == 1
    shared = skew_forward_kl(student, teacher, teacher_share=0.1)
    assert shared.item() == pytest.approx(-math.log(0.1))
    assert forward_kl(student, teacher).item() == math.inf
    assert reverse_kl(student, teacher).item() == math.inf


def test_an_end_of_symmetric_kl_is_not_spoilt_by_the_other_ones_infinity() -> None:
    student, teacher = row([0.0, 0.0]).log_softmax(-1), row([0.0, -math.inf])
    assert symmetric_kl(student, teacher, reverse_weight=0.0).isfinite()
    assert symmetric_kl(teacher, student, reverse_weight=1.0).isfinite()
    assert symmetric_kl(student, teacher, reverse_weight=0.5).item() == math.inf


def test_alpha_beta_contains_l2_hellinger_and_the_l2_of_logs() -> None:
    student, teacher = logp_pair()
    q, p = student.exp(), teacher.exp()
    torch.testing.assert_close(
        alpha_beta(student, teacher, alpha=1.0, beta=1.0), (p - q).square().sum(-1) / 2
    )
    torch.testing.assert_close(
        alpha_beta(student, teacher, alpha=0.5, beta=0.5),
        2 * (p.sqrt() - q.sqrt()).square().sum(-1),
    )
    torch.testing.assert_close(
        alpha_beta(student, teacher, alpha=0.0, beta=0.0), (student - teacher).square().sum(-1) / 2
    )
    torch.testing.assert_close(
        alpha_beta(student, teacher, alpha=0.3, beta=0.7),
        (1 - (p**0.3 * q**0.7).sum(-1)) / (0.3 * 0.7),
    )


def test_alpha_beta_in_fp32_near_an_axis_keeps_its_digits() -> None:
    student, teacher = logp_pair()
    exact = alpha_beta(student, teacher, alpha=1.0, beta=1e-4)
    narrow = alpha_beta(student.float(), teacher.float(), alpha=1.0, beta=1e-4)
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-3, atol=1e-5)


def test_the_squared_log_ratio_leaves_out_what_both_rule_out_only() -> None:
    student = row([0.0, -math.inf, -math.inf]).log_softmax(-1)
    teacher = row([0.0, 0.0, -math.inf]).log_softmax(-1)
    assert alpha_beta(student, student, alpha=0.0, beta=0.0).item() == 0
    assert alpha_beta(student, teacher, alpha=0.0, beta=0.0).item() == math.inf


def test_the_value_of_todi_is_jeffreys_and_its_gradient_is_not() -> None:
    student, teacher = logp_pair()
    torch.testing.assert_close(todi(student, teacher), jeffreys(student, teacher))
    ours = both({"kind": "todi"})[1]
    assert (ours - both({"kind": "jeffreys"})[1]).abs().max() > 0.1


def test_jeffreys_is_the_sum_of_signed_gaps() -> None:
    student, teacher = logp_pair()
    gaps = (teacher.exp() - student.exp()) * (teacher - student)
    torch.testing.assert_close(jeffreys(student, teacher), gaps.sum(-1))


def test_the_head_keeps_tokens_up_to_its_mass_and_always_the_first() -> None:
    # Teacher .6, .3, .1: a head of .5 is the first token alone, one of .9 the first two.
    teacher = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    for head_mass in (0.5, 0.91):
        found = adaptive_kl(student, teacher, head_mass=head_mass)
        torch.testing.assert_close(found, (forward + reverse) / 2)
    # Teacher .5, .3, .2 and a gap in the last token alone is no gap in the head.
    teacher = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    student = torch.tensor([[0.5, 0.1, 0.4]], dtype=torch.float64).log()
    found = adaptive_kl(student, teacher, head_mass=0.5)
    torch.testing.assert_close(found, reverse_kl(student, teacher))


def test_a_direction_of_no_weight_does_not_bring_its_infinity() -> None:
    # All of the gap is in the tail, where the teacher says what the student rules out.
    teacher = torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64).log()
    student = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64).log()
    assert forward_kl(student, teacher).item() == math.inf
    assert adaptive_kl(student, teacher, head_mass=0.5).isfinite()


def test_mixtures_keep_their_digits_where_probabilities_underflow() -> None:
    student, teacher = torch.tensor([[-200.0]]), torch.tensor([[-300.0]])
    mixed = mixture_logp(student, teacher, teacher_share=0.25)
    assert mixed.item() == pytest.approx(-200 + math.log(0.75))


@pytest.mark.parametrize("curve", [-3.0, -1.0, 0.5, 1.0])
def test_an_alpha_mixture_is_a_distribution(curve: float) -> None:
    mixture = alpha_mixture_logp(*logp_pair(), teacher_share=0.3, curve=curve)
    torch.testing.assert_close(mixture.exp().sum(-1), torch.ones(50, dtype=torch.float64))


def test_the_geometric_mixture_is_a_softmax_of_mixed_scores() -> None:
    student, teacher = golden_pair()
    mixture = alpha_mixture_logp(
        student.log_softmax(-1), teacher.log_softmax(-1), teacher_share=0.3, curve=1.0
    )
    torch.testing.assert_close(mixture, (0.7 * student + 0.3 * teacher).log_softmax(-1))


def test_detaching_the_mixture_keeps_the_value_and_changes_the_gradient() -> None:
    free, held = (
        both({"kind": "skew_reverse_kl", "detach_mixture": flag}) for flag in (False, True)
    )
    torch.testing.assert_close(free[0], held[0])
    assert (free[1] - held[1]).abs().max() > 0.01
