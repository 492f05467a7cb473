"""Clips: their gradients by formula, what they bound, and what the pointwise one turns round."""

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.kinds import CLIPPED, Case, each, name_of
from tests.objectives.pairs import random_pair, row, value_and_gradient
from tutelage.objectives import from_settings
from tutelage.objectives.divergences.kl import forward_kl, forward_kl_terms
from tutelage.objectives.divergences.mixtures import jsd_terms
from tutelage.objectives.entries import pointwise_clip, token_sum_clip, token_weight_clip

PLAIN: list[Case] = [
    {"kind": "forward_kl"},
    {"kind": "reverse_kl"},
    {"kind": "jsd"},
    {"kind": "jsd", "teacher_share": 0.2, "scaled": True},
    {"kind": "jsd", "teacher_share": 0.0, "scaled": True},
    {"kind": "jsd", "teacher_share": 1.0, "scaled": True},
]


def clipped(case: Case, kind: str, threshold: float) -> Case:
    return case | {"clip": {"kind": kind, "threshold": threshold}}


def by_rows(case: Case, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient by the kernel of the fused path."""
    scores = student.clone()
    values = from_settings(case).rows(scores, teacher.clone(), None)
    return values, scores


def both_ways(case: Case, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient, by autograd, once the kernel has been seen to say the same."""
    found = value_and_gradient(from_settings(case), student, teacher)
    torch.testing.assert_close(by_rows(case, student, teacher), found)
    return found


def between_the_middle_two(values: Tensor) -> float:
    """A threshold at no value itself, where one path may round to one side and one to the other."""
    middle = values.numel() // 2
    return float(values.sort().values[middle - 1 : middle + 1].mean())


def slopes(case: Case, lq: Tensor, lp: Tensor) -> tuple[Tensor, Tensor]:
    """Terms and d term / d log q of one of the three divergences, written out."""
    q, p = lq.exp(), lp.exp()
    if case["kind"] == "forward_kl" or case.get("teacher_share") == 0:
        return p * (lp - lq), -p
    if case["kind"] == "reverse_kl" or case.get("teacher_share") == 1:
        return q * (lq - lp), q * (lq - lp + 1)
    b = case.get("teacher_share", 0.5)
    scale = b * (1 - b) if case.get("scaled") else 1.0
    m = (b * p + (1 - b) * q).log()
    terms = b * p * (lp - m) + (1 - b) * q * (lq - m)
    return terms / scale, (1 - b) * q * (lq - m) / scale


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.3])
@each(PLAIN)
def test_the_pointwise_gradient_is_that_of_the_entries_below_the_threshold(
    case: Case, threshold: float
) -> None:
    student, teacher = random_pair(30, 8)
    lq, lp = student.log_softmax(-1), teacher.log_softmax(-1)
    terms, slope = slopes(case, lq, lp)
    slope = torch.where(terms < threshold, slope, 0.0)

    values, gradient = both_ways(clipped(case, "pointwise", threshold), student, teacher)

    torch.testing.assert_close(values, terms.clamp(max=threshold).sum(-1))
    torch.testing.assert_close(gradient, slope - lq.exp() * slope.sum(-1, keepdim=True))
    assert ((terms >= threshold).any(-1) & (terms < threshold).any(-1)).any()


def test_for_forward_kl_that_is_the_mass_below_times_the_student_less_the_teacher_below() -> None:
    student, teacher = random_pair(30, 8)
    q, p = student.softmax(-1), teacher.softmax(-1)
    below = p * (p / q).log() < 0.05
    case = clipped({"kind": "forward_kl"}, "pointwise", 0.05)
    _, gradient = both_ways(case, student, teacher)
    mass = (p * below).sum(-1, keepdim=True)
    torch.testing.assert_close(gradient, mass * q - p * below)


@each(CLIPPED)
def test_a_clipped_gradient_is_the_slope_of_the_clipped_value_on_rows_too(case: Case) -> None:
    student, teacher = random_pair(40, 6, seed=5)
    values, gradient = both_ways(case, student, teacher)
    if case["clip"]["kind"] == "token_weight":
        return
    nudge = torch.randn(student.shape, dtype=torch.float64) * 1e-6
    ahead, _ = by_rows(case, student + nudge, teacher)
    behind, _ = by_rows(case, student - nudge, teacher)
    slope = (ahead - behind) / 2
    kinks = ((ahead - values) - (values - behind)).abs() > 1e-9
    assert kinks.sum() <= 2
    torch.testing.assert_close(
        slope[~kinks], (gradient * nudge).sum(-1)[~kinks], rtol=1e-4, atol=1e-11
    )


@pytest.mark.parametrize("kind", ["pointwise", "token_sum", "token_weight"])
@each(PLAIN)
def test_a_threshold_that_nothing_reaches_is_no_clip(case: Case, kind: str) -> None:
    student, teacher = random_pair(30, 8)
    found = both_ways(clipped(case, kind, 1e6), student, teacher)
    torch.testing.assert_close(found, both_ways(case, student, teacher))


def test_an_infinite_threshold_is_no_clip() -> None:
    student, teacher = (side.log_softmax(-1) for side in random_pair(5, 6))
    for clip in (pointwise_clip, token_sum_clip, token_weight_clip):
        found = clip(forward_kl_terms, student, teacher, math.inf)
        torch.testing.assert_close(found, forward_kl(student, teacher))


@pytest.mark.parametrize("kind", ["pointwise", "token_sum", "token_weight"])
@pytest.mark.parametrize("case", [{"kind": "forward_kl"}, {"kind": "reverse_kl"}], ids=name_of)
def test_an_infinite_divergence_is_bounded_and_its_gradient_finite(case: Case, kind: str) -> None:
    student, teacher = random_pair(6, 6)
    student[:3, 1] = -math.inf
    teacher[2:5, 4] = -math.inf
    assert value_and_gradient(from_settings(case), student, teacher)[0].isinf().any()
    values, gradient = both_ways(clipped(case, kind, 0.1), student, teacher)
    assert values.max() <= (0.6 if kind == "pointwise" else 0.1) + 1e-12
    assert gradient.isfinite().all()


@each(PLAIN)
def test_a_clipped_sum_is_the_smaller_of_both_and_learns_nothing_above(case: Case) -> None:
    student, teacher = random_pair(60, 8)
    plain, free = both_ways(case, student, teacher)
    threshold = between_the_middle_two(plain)
    values, gradient = both_ways(clipped(case, "token_sum", threshold), student, teacher)
    above = plain >= threshold
    assert above.any()
    torch.testing.assert_close(values, plain.clamp(max=threshold))
    assert (gradient[above] == 0).all()
    torch.testing.assert_close(gradient[~above], free[~above])


@each(PLAIN)
def test_a_clipped_weight_keeps_the_direction_and_bounds_the_size(case: Case) -> None:
    student, teacher = random_pair(60, 8)
    plain, free = both_ways(case, student, teacher)
    threshold = between_the_middle_two(plain)
    values, gradient = both_ways(clipped(case, "token_weight", threshold), student, teacher)
    weight = (threshold / plain).clamp(max=1)
    torch.testing.assert_close(values, plain.clamp(max=threshold))
    torch.testing.assert_close(gradient, free * weight[:, None])
    cosine = torch.cosine_similarity(gradient, free, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_dropping_a_token_of_the_teacher_pays_under_the_pointwise_clip() -> None:
    # A student that gives a token of mass p nothing pays tau + (1 - p) log(1 - p).
    for mass, pays in ((0.5, True), (0.06, True), (0.0515, True), (0.0513, False), (0.01, False)):
        teacher = row([math.log(mass), math.log1p(-mass)])
        student = row([-60.0, 0.0])
        case = clipped({"kind": "forward_kl"}, "pointwise", 0.05)
        if mass * 60 < 0.05:
            continue
        values, _ = both_ways(case, student, teacher)
        assert values.item() == pytest.approx(0.05 + (1 - mass) * math.log1p(-mass), abs=1e-9)
        assert (values.item() < 0) is pays


@pytest.mark.parametrize("mass", [0.1, 0.3, 0.5, 0.9])
def test_the_gradient_turns_round_where_the_ratio_falls_below_its_threshold(mass: float) -> None:
    tau = 0.05
    ratio = math.exp(-tau / mass)
    assert ratio == pytest.approx({0.1: 0.607, 0.3: 0.846, 0.5: 0.905, 0.9: 0.946}[mass], abs=1e-3)
    case = clipped({"kind": "forward_kl"}, "pointwise", tau)
    teacher = row([math.log(mass), math.log1p(-mass)])
    signs: list[float] = []
    for just in (1e-6, -1e-6):
        q = mass * ratio * (1 + just)
        _, gradient = both_ways(case, row([math.log(q), math.log1p(-q)]), teacher)
        signs.append(math.copysign(1, gradient[0, 0].item()))
    assert signs == [-1, 1]


def test_the_example_of_two_equal_tokens() -> None:
    case = clipped({"kind": "forward_kl"}, "pointwise", 0.05)
    for q, golden in ((0.46, -0.04), (0.45, 0.225)):
        student = row([math.log(q), math.log1p(-q)])
        _, gradient = both_ways(case, student, row([0.0, 0.0]))
        assert gradient[0, 0].item() == pytest.approx(golden, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@each([case for case in CLIPPED if "scale_by_t2" not in case])
def test_the_gradient_shrinks_with_the_temperature_and_the_threshold_is_of_tempered_nats(
    case: Case, temperature: float
) -> None:
    student, teacher = random_pair(20, 6)
    plain = case | {"temperature": 1.0}
    values, gradient = both_ways(plain, student, teacher)
    hot = case | {"temperature": temperature}
    found = both_ways(hot, student * temperature, teacher * temperature)
    torch.testing.assert_close(found, (values, gradient / temperature))


def test_the_terms_of_a_jsd_are_never_negative() -> None:
    student, teacher = (side.log_softmax(-1) for side in random_pair(200, 6))
    for share in (0.01, 0.5, 0.9):
        assert jsd_terms(student, teacher, teacher_share=share).min() >= -1e-16


def descent(case: Case, student: Tensor, teacher: Tensor, *, steps: int = 1000) -> Tensor:
    """KL to the teacher after plain gradient descent on free scores, by the kernel."""
    objective, scores = from_settings(case), student.clone()
    for _ in range(steps):
        gradient = scores.clone()
        objective.rows(gradient, teacher.clone(), None)
        scores -= gradient
    return kl(scores, teacher)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return from_settings({"kind": "forward_kl"}).from_logits(student, teacher)


ARRIVE: list[Case] = [
    {"kind": "forward_kl"},
    {"kind": "reverse_kl"},
    {"kind": "jsd", "scaled": True},
    clipped({"kind": "forward_kl"}, "token_weight", 0.05),
    clipped({"kind": "reverse_kl"}, "token_weight", 0.05),
]


@pytest.mark.parametrize("case", ARRIVE, ids=name_of)
def test_a_free_student_arrives_at_its_teacher(case: Case) -> None:
    student, teacher = random_pair(20, 6, seed=2)
    assert descent(case, student / 2, teacher / 2).max() < 1e-5


def test_under_the_pointwise_clip_a_free_student_moves_away_from_its_teacher() -> None:
    # Expected of the faithful mode: see the docstring of `pointwise_clip`.
    student, teacher = random_pair(20, 6, seed=2)
    case = clipped({"kind": "forward_kl"}, "pointwise", 0.05)
    assert (descent(case, student / 2, teacher / 2) > 0.05).all()
    far = descent(case, teacher / 2 + student * 0.3, teacher / 2)
    assert (far > kl(teacher / 2 + student * 0.3, teacher / 2)).float().mean() > 0.6


def test_with_a_tiny_threshold_it_does_not_even_stay_near() -> None:
    student, teacher = random_pair(20, 6, seed=2)
    near = teacher / 2 + student * 0.02
    start = kl(near, teacher / 2)
    assert start.max() < 3e-3
    tiny = clipped({"kind": "forward_kl"}, "pointwise", 1e-6)
    assert (descent(tiny, near, teacher / 2) > start).all()
    faithful = clipped({"kind": "forward_kl"}, "pointwise", 0.05)
    assert (descent(faithful, near, teacher / 2) < 1e-5).float().mean() == 1
