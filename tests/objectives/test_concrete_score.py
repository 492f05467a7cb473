"""Concrete score: the numbered properties of the method, in fp64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives import gradient_oracle, oracle
from tests.objectives.kinds import CONCRETE_SCORES, WEIGHTS, Case, each
from tests.objectives.pairs import Pair, random_pair, student_and_teacher, value_and_gradient
from tutelage.core.errors import DataError
from tutelage.objectives import (
    concrete_score,
    from_settings,
    joint_concrete_score,
    sampled_concrete_score,
)

PAIRS = [(first, second) for first in WEIGHTS for second in WEIGHTS]


def csd(*weights: str, **more: object) -> Case:
    return {"kind": "concrete_score", "weights": list(weights), **more}


def gradient_of(case: Case, pair: Pair) -> Tensor:
    return value_and_gradient(from_settings(case), *pair)[1]


def value_of(case: Case, pair: Pair) -> Tensor:
    return value_and_gradient(from_settings(case), *pair)[0]


def parts_of(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher probabilities, and the gap of log-probabilities."""
    lq, lp = (scores.log_softmax(-1) for scores in pair)
    return lq.exp(), lp.exp(), lq - lp


def mean(weight: Tensor, x: Tensor) -> Tensor:
    return (weight * x).sum(-1, keepdim=True)


@settings(max_examples=20)
@given(pair=student_and_teacher(), data=st.data())
def test_any_positive_weights_give_the_double_sum_and_its_gradient(
    pair: Pair, data: st.DataObject
) -> None:
    student, teacher = pair
    seed = data.draw(st.integers(0, 1000))
    w1, w2 = torch.rand(2, *student.shape, generator=torch.Generator().manual_seed(seed)).double()
    scores = student.clone().requires_grad_()

    values = concrete_score(scores, teacher, 5 * w1, w2)
    (gradient,) = torch.autograd.grad(values.sum(), scores)

    rows = zip(*(x.tolist() for x in (student, teacher, 5 * w1, w2)), strict=True)
    for mine, slope, row in zip(values.tolist(), gradient.tolist(), rows, strict=True):
        assert mine == pytest.approx(oracle.double_sum(*row), rel=1e-9, abs=1e-10)
        formula = gradient_oracle.of_concrete_score(*row)
        assert slope == pytest.approx(formula, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("weights", PAIRS)
def test_gradcheck_with_the_weights_held_still(weights: tuple[str, str]) -> None:
    student, teacher = random_pair(2, 4)
    w1, w2 = (
        torch.tensor(
            [
                oracle.weight_of(whose, s, t)
                for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
        for whose in weights
    )
    assert torch.autograd.gradcheck(
        lambda z: concrete_score(z, teacher, w1, w2), student.requires_grad_()
    )


def test_weights_carry_no_gradient_even_when_the_caller_forgot() -> None:
    student, teacher = random_pair(2, 5)
    student.requires_grad_()
    careless = concrete_score(student, teacher, student.softmax(-1), student.softmax(-1))
    (gradient,) = torch.autograd.grad(careless.sum(), student)
    torch.testing.assert_close(gradient, gradient_of(csd("student", "student"), (student, teacher)))


def test_weights_left_in_the_graph_would_add_the_third_moment() -> None:
    pair = random_pair(20, 6)
    q, _, gap = parts_of(pair)
    student = pair[0].clone().requires_grad_()
    lq = student.log_softmax(-1)
    centred = lq - pair[1].log_softmax(-1)
    attached = (lq.exp() * (centred - mean(lq.exp(), centred)).square()).sum(-1) / 2
    (wrong,) = torch.autograd.grad(attached.sum(), student)

    r = gap - mean(q, gap)
    extra = q * (r.square() - mean(q, r.square())) / 2
    torch.testing.assert_close(wrong - gradient_of(csd("student", "student"), pair), extra)
    assert extra.abs().max() > 0.1


@pytest.mark.parametrize("weights", PAIRS)
def test_the_order_of_weights_does_not_matter(weights: tuple[str, str]) -> None:
    pair = random_pair(4, 6)
    one, other = (from_settings(csd(*w)) for w in (weights, weights[::-1]))
    torch.testing.assert_close(value_and_gradient(one, *pair), value_and_gradient(other, *pair))


@each(CONCRETE_SCORES)
def test_scores_and_log_probabilities_give_the_same(case: Case) -> None:
    student, teacher = random_pair(4, 6)
    values, gradient = value_and_gradient(from_settings(case), student, teacher)
    logs = student.log_softmax(-1), teacher.log_softmax(-1)
    torch.testing.assert_close(value_and_gradient(from_settings(case), *logs), (values, gradient))


@each(CONCRETE_SCORES)
def test_a_common_offset_of_the_scores_costs_no_digits_in_fp32(case: Case) -> None:
    student, teacher = random_pair(8, 1000)
    exact = value_and_gradient(from_settings(case), student, teacher)
    narrow = value_and_gradient(from_settings(case), student.float() + 40, teacher.float() - 40)
    # The offset alone rounds each score to 2e-6.
    torch.testing.assert_close(narrow[0].double(), exact[0], rtol=3e-5, atol=3e-5)
    torch.testing.assert_close(narrow[1].double(), exact[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5, 2.0, 5.0])
def test_student_weights_are_reverse_kl_at_the_weight_temperature(temperature: float) -> None:
    pair = random_pair(10, 7)
    ours = gradient_of(csd("student", "student", weight_temperature=temperature), pair)
    reverse = {"kind": "reverse_kl", "temperature": temperature, "scale_by_t2": True}
    torch.testing.assert_close(ours, gradient_of(reverse, pair), rtol=1e-9, atol=1e-12)


def test_uniform_weights_are_the_mean_centred_squared_gap() -> None:
    pair = random_pair(10, 7)
    centred = {"kind": "direct_logit", "weight": "uniform", "normalisation": "mean"}
    uniform = from_settings(csd("uniform", "uniform"))
    torch.testing.assert_close(
        value_and_gradient(uniform, *pair), value_and_gradient(from_settings(centred), *pair)
    )


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_uniform_weights_are_the_limit_of_hot_kl(kind: str) -> None:
    pair = random_pair(10, 7)
    limit = gradient_of(csd("uniform", "uniform"), pair)

    def error(temperature: float) -> float:
        hot = {"kind": kind, "temperature": temperature, "scale_by_t2": True}
        return (gradient_of(hot, pair) - limit).abs().max().item()

    assert error(1e2) / error(1e3) == pytest.approx(10, rel=0.1)
    assert error(1e3) / error(1e4) == pytest.approx(10, rel=0.1)
    assert error(1e4) < 1e-3


def test_teacher_and_student_weights_split_into_the_mixture_and_a_share_of_forward_kl() -> None:
    pair = random_pair(10, 7)
    q, p, gap = parts_of(pair)
    m = (p + q) / 2
    jeffreys = value_of({"kind": "jeffreys"}, pair).unsqueeze(-1)
    split = m * (gap - mean(m, gap)) + jeffreys / 4 * (q - p)
    torch.testing.assert_close(gradient_of(csd("teacher", "student"), pair), split)


@pytest.mark.parametrize("weights", PAIRS)
def test_every_pair_splits_into_its_mean_weight_and_a_difference(
    weights: tuple[str, str],
) -> None:
    pair = random_pair(10, 7)
    q, p, gap = parts_of(pair)
    w1, w2 = (
        {"student": q, "teacher": p, "uniform": torch.full_like(q, 1 / 7)}[w] for w in weights
    )
    m = (w1 + w2) / 2
    split = m * (gap - mean(m, gap)) + (w2 - w1) * (mean(w2, gap) - mean(w1, gap)) / 4
    torch.testing.assert_close(gradient_of(csd(*weights), pair), split)


@each(
    [
        csd("student", "student"),
        csd("teacher", "teacher"),
        csd("teacher", "student"),
        {"kind": "forward_kl"},
        {"kind": "reverse_kl"},
    ]
)
def test_at_the_optimum_all_share_the_curvature_of_kl(case: Case) -> None:
    _, teacher = random_pair(1, 5)
    objective = from_settings(case)

    def slope(scores: Tensor) -> Tensor:
        values = objective.from_logits(scores.unsqueeze(0), teacher)
        return torch.autograd.grad(values.sum(), scores, create_graph=True)[0]

    step, scores = 1e-5, teacher[0] + 3
    columns = []
    for v in range(5):
        nudge = torch.zeros(5, dtype=torch.float64)
        nudge[v] = step
        up, down = ((scores + n).requires_grad_() for n in (nudge, -nudge))
        columns.append((slope(up) - slope(down)) / (2 * step))

    p = teacher[0].softmax(-1)
    torch.testing.assert_close(
        torch.stack(columns, dim=1).detach(), p.diag() - p.outer(p), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("whose", WEIGHTS)
def test_one_weight_twice_is_the_direct_logit_loss_profiled_over_the_shift(whose: str) -> None:
    student, teacher = random_pair(10, 7)
    q, p, _ = parts_of((student, teacher))
    weight = {"student": q, "teacher": p, "uniform": torch.full_like(q, 1 / 7)}[whose]
    direct = from_settings({"kind": "direct_logit", "weight": whose, "normalisation": "none"})
    best_shift = mean(weight, teacher - student)
    # In the paper's scale, twice ours, it is 2 * min_c DLD(student + c).
    paper_scale = 2 * value_of(csd(whose, whose), (student, teacher))
    profiled = direct.from_logits(student + best_shift, teacher)
    torch.testing.assert_close(paper_scale, 2 * profiled)
    assert (paper_scale <= 2 * direct.from_logits(student, teacher)).all()


def test_the_ends_of_the_mixture_are_student_and_teacher_weights() -> None:
    pair = random_pair(5, 6)
    for mixture, whose in ((0.0, "student"), (1.0, "teacher")):
        mixed = from_settings({"kind": "concrete_score", "mixture": mixture})
        plain = from_settings(csd(whose, whose))
        torch.testing.assert_close(
            value_and_gradient(mixed, *pair), value_and_gradient(plain, *pair)
        )


def test_drawing_one_token_of_the_pair_is_right_on_average() -> None:
    student, teacher = random_pair(2, 6)
    first = teacher.softmax(-1)
    # Any joint weight: given the first token, the second prefers its neighbours.
    distance = (torch.arange(6).unsqueeze(0) - torch.arange(6).unsqueeze(1)).abs().double()
    given_first = (-distance).softmax(-1)
    expected_value, expected_gradient = torch.zeros(2).double(), torch.zeros(2, 6).double()
    for y in range(6):
        scores = student.clone().requires_grad_()
        anchor = torch.full((2,), y)
        values = joint_concrete_score(scores, teacher, anchor, given_first[y].expand(2, 6))
        weighted = values * first[:, y]
        expected_value += weighted.detach()
        expected_gradient += torch.autograd.grad(weighted.sum(), scores)[0]

    d = student - teacher
    joint = first.unsqueeze(-1) * given_first
    gaps = d.unsqueeze(-2) - d.unsqueeze(-1)
    torch.testing.assert_close(expected_value, (joint * gaps.square()).sum((-1, -2)) / 4)
    by_hand = ((joint * gaps).sum(-2) - (joint * gaps).sum(-1)) / 2
    torch.testing.assert_close(expected_gradient, by_hand)


def test_a_drawn_token_with_a_factorised_weight_is_the_plain_loss_on_average() -> None:
    student, teacher = random_pair(1, 6)
    q, p = student.softmax(-1), teacher.softmax(-1)
    total = sum(
        p[:, y] * joint_concrete_score(student, teacher, torch.tensor([y]), q) for y in range(6)
    )
    torch.testing.assert_close(total, value_of(csd("teacher", "student"), (student, teacher)))


def test_a_ruled_out_token_of_no_weight_does_not_spoil_a_drawn_pair() -> None:
    scores = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -math.inf]])
    weight = torch.tensor([[0.5, 0.5, 0.0]])
    value = joint_concrete_score(scores, teacher, torch.tensor([0]), weight)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert value.item() == pytest.approx(0.5)
    assert gradient.isfinite().all()


def test_tokens_the_student_drew_give_the_gradient_of_reverse_kl_on_average() -> None:
    # Exactly, over all ordered pairs of draws.
    student, teacher = random_pair(1, 4)
    scores = student.clone().requires_grad_()
    lq, lp = scores.log_softmax(-1), teacher.log_softmax(-1)
    draws = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    values = sampled_concrete_score(lq[0][draws], lp[0][draws])
    chance = student.softmax(-1)[0][draws].prod(-1)
    (gradient,) = torch.autograd.grad((chance * values).sum(), scores)
    torch.testing.assert_close(gradient, gradient_of({"kind": "reverse_kl"}, (student, teacher)))
    torch.testing.assert_close(
        (chance * values).sum(-1, keepdim=True).detach(),
        value_of(csd("student", "student"), (student, teacher)),
    )


def test_one_drawn_token_has_no_variance() -> None:
    with pytest.raises(DataError, match="has 1 token for each position; it must have 2 or more"):
        sampled_concrete_score(torch.zeros(3, 1), torch.zeros(3, 1))


def test_the_weighted_means_of_the_gap_are_the_kls() -> None:
    pair = random_pair(5, 6)
    q, p, gap = parts_of(pair)
    torch.testing.assert_close(mean(q, gap).squeeze(-1), value_of({"kind": "reverse_kl"}, pair))
    torch.testing.assert_close(mean(p, -gap).squeeze(-1), value_of({"kind": "forward_kl"}, pair))
    torch.testing.assert_close(
        (mean(q, gap) - mean(p, gap)).squeeze(-1), value_of({"kind": "jeffreys"}, pair)
    )


def test_an_entry_that_either_side_rules_out_leaves_the_loss_of_the_rest() -> None:
    student, teacher = random_pair(3, 6)
    cut_student, cut_teacher = student.clone(), teacher.clone()
    cut_student[:, 4] = -math.inf
    cut_teacher[:, 5] = -math.inf
    for weights in PAIRS:
        objective = from_settings(csd(*weights, weight_temperature=1.0))
        values, gradient = value_and_gradient(objective, cut_student, cut_teacher)
        rest, rest_gradient = value_and_gradient(objective, student[:, :4], teacher[:, :4])
        torch.testing.assert_close(values, rest)
        torch.testing.assert_close(gradient[:, :4], rest_gradient)


def trained(case: Case, *, steps: int) -> Tensor:
    """A student of rank 3 after some AdamW steps towards a full-rank teacher."""
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(12, 20, dtype=torch.float64, generator=generator) * 2
    left = torch.randn(12, 3, dtype=torch.float64, generator=generator).requires_grad_()
    right = torch.randn(3, 20, dtype=torch.float64, generator=generator).requires_grad_()
    objective = from_settings(case)
    optimizer = torch.optim.AdamW([left, right], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.from_logits(left @ right, teacher).mean().backward()
        optimizer.step()
    return torch.cat([left.detach().flatten(), right.detach().flatten()])


def test_training_with_student_weights_is_training_with_reverse_kl() -> None:
    ours = trained(csd("student", "student"), steps=60)
    reverse = trained({"kind": "reverse_kl"}, steps=60)
    other = trained(csd("teacher", "student"), steps=60)
    assert (ours - reverse).norm() / reverse.norm() < 1e-5
    assert (other - reverse).norm() / reverse.norm() > 1e-2
