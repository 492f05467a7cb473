"""Every kind against its definition, value and gradient, in plain Python floats."""

import math

import pytest
import torch
from hypothesis import given, settings

from tests.objectives import gradient_oracle, oracle
from tests.objectives.kinds import (
    CONCRETE_SCORES,
    DIVERGENCES,
    EVERY,
    SUPPORTED,
    Case,
    each,
    every_kind,
)
from tests.objectives.pairs import (
    Pair,
    random_pair,
    student_and_teacher,
    value_and_gradient,
    with_ruled_out_entries,
)
from tutelage.objectives import from_settings

# The mixture of AMiD carries gradient through a normaliser; `gradcheck` covers it below.
WITH_SLOPES = [case for case in DIVERGENCES if case["kind"] != "amid"]
CONSTANTS_INSIDE = ("adaptive_kl", "todi", "concrete_score")


def has_constants_inside(case: Case) -> bool:
    """Whether something that depends on the student is held still, so that slopes differ."""
    return (
        case["kind"] in CONSTANTS_INSIDE
        or case.get("detach_mixture", False)
        or case.get("weight") == "student"
        or case.get("clip", {}).get("kind") == "token_weight"
        or case["kind"] == "sampled_token"
    )


# Among equal scores a support may take any: those are compared on scores without ties, below.
@each([case for case in EVERY if "support" not in case])
@settings(max_examples=12)
@given(pair=with_ruled_out_entries())
def test_the_value_is_the_definition_and_its_gradient_finite_wherever_it_is(
    case: Case, pair: Pair
) -> None:
    student, teacher = pair
    labels = torch.arange(student.shape[0]) % student.shape[1]

    values, gradient = value_and_gradient(from_settings(case), student, teacher, labels)

    rows = zip(*(x.tolist() for x in (student, teacher, labels)), strict=True)
    expected = [oracle.value(case, *row) for row in rows]
    assert values.tolist() == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert gradient[values.isfinite()].isfinite().all()


@each(SUPPORTED)
@pytest.mark.parametrize("ruled_out", [0, 1, 4])
def test_a_supports_value_is_its_definition(case: Case, ruled_out: int) -> None:
    student, teacher = random_pair(20, 7)
    student[:, 3 : 3 + ruled_out] = -math.inf
    teacher[10:, 2 : 2 + ruled_out] = -math.inf
    values, gradient = value_and_gradient(from_settings(case), student, teacher)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [oracle.value(case, *row) for row in rows]
    assert values.tolist() == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert gradient[values.isfinite()].isfinite().all()


@each(WITH_SLOPES)
@settings(max_examples=12)
@given(pair=student_and_teacher())
def test_the_gradient_of_a_divergence_is_its_formula(case: Case, pair: Pair) -> None:
    if case["kind"] == "total_variation":
        # At a tie the slope is a matter of taste; ours is 0 and has its own test.
        pair = (pair[0], pair[1] + torch.linspace(0.1, 0.7, pair[1].shape[-1]).double())

    _, gradient = value_and_gradient(from_settings(case), *pair)

    for mine, student, teacher in zip(*(x.tolist() for x in (gradient, *pair)), strict=True):
        formula = gradient_oracle.of_divergence(case, student, teacher)
        assert mine == pytest.approx(formula, rel=1e-7, abs=1e-9)


@each(CONCRETE_SCORES)
@settings(max_examples=12)
@given(pair=student_and_teacher())
def test_the_gradient_of_concrete_score_is_that_of_the_double_sum(case: Case, pair: Pair) -> None:
    _, gradient = value_and_gradient(from_settings(case), *pair)

    for mine, student, teacher in zip(*(x.tolist() for x in (gradient, *pair)), strict=True):
        weights = oracle.concrete_score_weights(student, teacher, case)
        formula = gradient_oracle.of_concrete_score(student, teacher, *weights)
        assert mine == pytest.approx(formula, rel=1e-8, abs=1e-10)


@each([case for case in EVERY if not has_constants_inside(case)])
def test_the_gradient_is_the_slope_of_the_value(case: Case) -> None:
    student, teacher = random_pair(2, 5)
    objective = from_settings(case)
    labels = torch.tensor([3, 1])

    assert torch.autograd.gradcheck(
        lambda scores: objective.from_logits(scores, teacher, labels),
        student.requires_grad_(),
        check_batched_grad=False,
    )


@each([{"kind": "direct_logit", "weight": "student", "normalisation": "none"}])
@settings(max_examples=12)
@given(pair=student_and_teacher())
def test_direct_logit_holds_the_students_weights_still(case: Case, pair: Pair) -> None:
    student, teacher = pair
    _, gradient = value_and_gradient(from_settings(case), student, teacher)
    torch.testing.assert_close(gradient, student.softmax(-1) * (student - teacher))


@every_kind
def test_the_rows_of_the_fused_path_have_the_same_value_and_gradient(case: Case) -> None:
    student, teacher = random_pair(4, 7, seed=3)
    labels = torch.tensor([0, 6, 2, 2])
    objective = from_settings(case)

    values, gradient = value_and_gradient(objective, student, teacher, labels)
    row_values = objective.rows(student, teacher, labels)

    torch.testing.assert_close(row_values, values)
    torch.testing.assert_close(student, gradient)
