"""What every objective owes: zero at equality, finite at the extremes, blind to padding."""

import math

import pytest
import torch

from tests.objectives.kinds import (
    ACROSS,
    CLIPPED,
    CONCRETE_SCORES,
    DIVERGENCES,
    EVERY,
    SUPPORTED,
    ZERO_AT_EQUALITY,
    Case,
    each,
    every_divergence,
    every_kind,
)
from tests.objectives.pairs import random_pair, value_and_gradient
from tutelage.core.errors import DataError
from tutelage.core.targets import LogitsTarget
from tutelage.objectives import excluded_mass_of_logits, from_settings

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def labels_for(scores: torch.Tensor) -> torch.Tensor:
    return torch.zeros(scores.shape[:-1], dtype=torch.int64)


def sees_constants(case: Case) -> bool:
    """Direct logits without normalisation are no function of the probabilities."""
    return case["kind"] == "direct_logit" and case["normalisation"] == "none"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_divergence
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(
    case: Case, dtype: torch.dtype
) -> None:
    student, _ = random_pair(3, 40, dtype=dtype)
    values, gradient = value_and_gradient(from_settings(case), student, student.clone())
    assert values.abs().max() <= 1e-6
    assert gradient.abs().max() <= 1e-6


@each([case for case in ZERO_AT_EQUALITY if case["kind"] != "direct_logit"])
def test_a_constant_added_to_all_scores_of_one_model_changes_nothing(case: Case) -> None:
    student, teacher = random_pair(3, 6)
    before = value_and_gradient(from_settings(case), student, teacher)
    for shifted in ((student + 7, teacher), (student, teacher - 3)):
        torch.testing.assert_close(value_and_gradient(from_settings(case), *shifted), before)


@each([case for case in ZERO_AT_EQUALITY if case["kind"] == "direct_logit"])
def test_only_unnormalised_direct_logits_see_a_constant(case: Case) -> None:
    student, teacher = random_pair(3, 6)
    before, _ = value_and_gradient(from_settings(case), student, teacher)
    after, _ = value_and_gradient(from_settings(case), student + 7, teacher)
    assert torch.allclose(before, after) is not sees_constants(case)


@each([*DIVERGENCES, *CLIPPED, *SUPPORTED, *CONCRETE_SCORES, *ACROSS])
def test_the_gradient_adds_up_to_nothing(case: Case) -> None:
    _, gradient = value_and_gradient(from_settings(case), *random_pair(3, 9))
    assert gradient.sum(-1).abs().max() <= 1e-12


def may_be_negative(case: Case) -> bool:
    """A KL whose entries are clipped one by one; the terms of a JSD are never negative."""
    return case["kind"] != "jsd" and case.get("clip", {}).get("kind") == "pointwise"


@each([case for case in ZERO_AT_EQUALITY if not may_be_negative(case)])
def test_a_loss_is_never_negative(case: Case) -> None:
    student, teacher = random_pair(200, 7, dtype=torch.float32)
    near, _ = value_and_gradient(from_settings(case), student, student + teacher * 1e-3)
    far, _ = value_and_gradient(from_settings(case), student, teacher * 3)
    assert near.min() >= -1e-6
    assert far.min() >= 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_kind
def test_gaps_of_ten_thousand_stay_finite(case: Case, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, 0.0, -3.0], [0.0, 1e4, 1.0], [200.0, 0.0, 0.0]], dtype=dtype)
    teacher = torch.tensor([[0.0, 1e4, 2.0], [0.0, 1e4, 1.0], [0.0, 200.0, 0.0]], dtype=dtype)
    values, gradient = value_and_gradient(
        from_settings(case), student, teacher, labels_for(student)
    )
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_kind
def test_narrow_inputs_are_widened_before_anything_is_computed(
    case: Case, dtype: torch.dtype
) -> None:
    student, teacher = random_pair(4, 50, dtype=dtype)
    labels = labels_for(student)
    objective = from_settings(case)

    narrow = objective.per_token(student, LogitsTarget(logits=teacher, labels=labels))
    wide = objective.per_token(student.float(), LogitsTarget(logits=teacher.float(), labels=labels))

    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, wide)


@every_kind
def test_a_token_both_rule_out_changes_neither_value_nor_gradient(case: Case) -> None:
    student, teacher = random_pair(3, 5)
    ruled_out = torch.full((3, 2), -math.inf, dtype=torch.float64)
    padded = [torch.cat([scores, ruled_out], dim=-1) for scores in (student, teacher)]
    labels = labels_for(student)

    values, gradient = value_and_gradient(from_settings(case), student, teacher, labels)
    same_values, wider = value_and_gradient(from_settings(case), *padded, labels)

    torch.testing.assert_close(same_values, values)
    torch.testing.assert_close(wider[:, :5], gradient)
    assert (wider[:, 5:] == 0).all()


@pytest.mark.parametrize(("student_size", "teacher_size"), [(5, 8), (8, 5), (8, 9)])
@every_kind
def test_vocabularies_padded_differently_compare_on_what_is_real(
    case: Case, student_size: int, teacher_size: int
) -> None:
    student, teacher = random_pair(3, 9)
    labels = labels_for(student)
    objective = from_settings(case)
    plain = value_and_gradient(objective, student[:, :5], teacher[:, :5], labels)

    scores = student[:, :student_size].clone().requires_grad_()
    target = LogitsTarget(logits=teacher[:, :teacher_size], labels=labels, num_real=5)
    values = objective.per_token(scores, target)
    (gradient,) = torch.autograd.grad(values.sum(), scores)

    torch.testing.assert_close((values, gradient[:, :5]), plain)
    assert (gradient[:, 5:] == 0).all()


@every_kind
def test_without_a_count_of_real_entries_the_smaller_vocabulary_decides(case: Case) -> None:
    student, teacher = random_pair(3, 9)
    labels, objective = labels_for(student), from_settings(case)
    plain, _ = value_and_gradient(objective, student[:, :5], teacher[:, :5], labels)
    values, _ = value_and_gradient(objective, student, teacher[:, :5], labels)
    torch.testing.assert_close(values, plain)


def test_the_mass_left_out_is_that_of_the_entries_behind_the_common_ones() -> None:
    student, _ = random_pair(2, 3, 9)
    p = student.requires_grad_().softmax(-1)
    excluded = excluded_mass_of_logits(student, 5)
    torch.testing.assert_close(excluded, p[..., 5:].sum(-1).detach())
    assert not excluded.requires_grad


@every_kind
def test_the_teacher_never_gets_a_gradient(case: Case) -> None:
    student, teacher = random_pair(2, 6)
    student.requires_grad_()
    teacher.requires_grad_()
    target = LogitsTarget(logits=teacher, labels=labels_for(student))
    from_settings(case).per_token(student, target).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


@each([case for case in [*DIVERGENCES, *CLIPPED, *SUPPORTED] if case["kind"] != "amid"])
@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_temperature_divides_scores_and_its_square_is_a_choice(
    case: Case, temperature: float
) -> None:
    student, teacher = random_pair(3, 6)
    plain = from_settings(case | {"temperature": 1.0, "scale_by_t2": False})
    hot = from_settings(case | {"temperature": temperature, "scale_by_t2": False})
    scaled = from_settings(case | {"temperature": temperature, "scale_by_t2": True})

    values, gradient = value_and_gradient(plain, student / temperature, teacher / temperature)
    torch.testing.assert_close(
        value_and_gradient(hot, student, teacher), (values, gradient / temperature)
    )
    torch.testing.assert_close(
        value_and_gradient(scaled, student, teacher),
        (values * temperature**2, gradient * temperature),
    )


@each([case for case in EVERY if case["kind"] != "weighted_sum"])
def test_positions_do_not_see_each_other_and_may_have_any_shape(case: Case) -> None:
    student, teacher = random_pair(2, 3, 6)
    labels = labels_for(student)
    labels[1, 2] = 4
    values, gradient = value_and_gradient(from_settings(case), student, teacher, labels)
    for at in [(0, 0), (1, 2)]:
        value, slope = value_and_gradient(from_settings(case), student[at], teacher[at], labels[at])
        torch.testing.assert_close((value, slope), (values[at], gradient[at]))


@every_kind
def test_rows_with_ruled_out_entries_are_those_of_the_definition(case: Case) -> None:
    student, teacher = random_pair(4, 6)
    student[1, 2] = teacher[2, 3] = student[3, 4] = teacher[3, 4] = -math.inf
    labels, objective = labels_for(student), from_settings(case)
    values, gradient = value_and_gradient(objective, student, teacher, labels)
    torch.testing.assert_close(objective.rows(student, teacher, labels), values)
    finite = values.isfinite()
    torch.testing.assert_close(student[finite], gradient[finite])


def test_a_target_for_other_positions_is_refused() -> None:
    student, teacher = random_pair(4, 6)
    with pytest.raises(DataError, match=r"shape \(3,\); it must be the student's \(4,\)"):
        from_settings({"kind": "jsd"}).per_token(student, LogitsTarget(logits=teacher[:3]))
