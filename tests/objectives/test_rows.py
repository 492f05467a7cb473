"""Row kernels against the definition they stand for, over settings that `kinds` has one of."""

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.kinds import EVERY, WEIGHTS, Case, each
from tests.objectives.pairs import Pair, random_pair, value_and_gradient
from tutelage.objectives import Objective, from_settings
from tutelage.objectives.row_kernels import forget_scratch

BETWEEN = ("teacher_mixture", "student_mixture", "mixture_teacher", "mixture_student")

AMIDS: list[Case] = [
    {"kind": "amid", "between": between, "measure": measure, "curve": curve, "teacher_share": share}
    for between in BETWEEN
    for measure in ("kl", "alpha_beta")
    for curve, share in ((0.5, 0.5), (-1.0, 0.1), (0.97, 0.7), (1.0, 0.3), (-3.0, 0.9))
]

ALPHA_BETAS: list[Case] = [
    {"kind": "alpha_beta", "alpha": alpha, "beta": beta}
    for alpha, beta in [
        *((1.0, 0.0), (0.3, 0.0), (0.0, 1.0), (0.0, 0.4), (0.0, 0.0)),
        *((0.2, 0.7), (1.4, 0.3), (0.1, 1.9)),
    ]
]

DIRECT_LOGITS: list[Case] = [
    {"kind": "direct_logit", "weight": weight, "normalisation": how}
    for weight in WEIGHTS
    for how in ("none", "mean", "std", "min", "max", "range")
]

OTHERS: list[Case] = [
    {"kind": "adaptive_kl", "head_mass": 0.95},
    {"kind": "alpha_beta", "alpha": 0.0, "beta": 0.5, "temperature": 1.7, "scale_by_t2": True},
    {"kind": "amid", "measure": "alpha_beta", "temperature": 0.6},
    {"kind": "amid", "curve": 1.0, "temperature": 2.5, "scale_by_t2": True},
]


def sum_of(*objectives: Case) -> Case:
    parts = [{"weight": 0.5 + i, "objective": one} for i, one in enumerate(objectives)]
    return {"kind": "weighted_sum", "parts": parts}


REVERSE_KL, JSD = {"kind": "reverse_kl"}, {"kind": "jsd"}
SUMS = [
    sum_of({"kind": "amid", "curve": 1.0}),
    sum_of(JSD, REVERSE_KL, {"kind": "alpha_beta"}),
    sum_of(JSD, sum_of(REVERSE_KL, sum_of(JSD, {"kind": "todi"}), {"kind": "amid"}), REVERSE_KL),
    sum_of(sum_of(REVERSE_KL, JSD), sum_of(JSD, {"kind": "todi"}), {"kind": "alpha_beta"}),
]

CASES = [*SUMS, *AMIDS, *ALPHA_BETAS, *DIRECT_LOGITS, *OTHERS]
EVERYTHING = [*CASES, *(case for case in EVERY if case not in CASES)]


def rows_of(objective: Objective, pair: Pair, labels: Tensor) -> Pair:
    student, teacher = (side.clone() for side in pair)
    return objective.rows(student, teacher, labels), student


def labels_for(pair: Pair) -> Tensor:
    return torch.zeros(pair[0].shape[0], dtype=torch.int64)


def assert_rows_are_the_definition(
    case: Case, pair: Pair, *, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    objective, labels = from_settings(case), labels_for(pair)
    wanted = value_and_gradient(objective, *pair, labels)
    for got, want in zip(rows_of(objective, pair, labels), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@each(CASES)
@pytest.mark.parametrize("spread", [0.05, 1.0, 8.0])
def test_in_float64_rows_are_the_definition(case: Case, spread: float) -> None:
    student, teacher = random_pair(5, 23, seed=1)
    assert_rows_are_the_definition(case, (student * spread + 3, teacher * spread - 40))


@each(CASES)
def test_rows_of_the_same_scores_leave_nothing(case: Case) -> None:
    student, _ = random_pair(3, 17)
    values, gradient = rows_of(
        from_settings(case), (student, student), labels_for((student, student))
    )
    assert values.abs().max() < 1e-13
    assert gradient.abs().max() < 1e-13


@each(EVERYTHING)
@pytest.mark.parametrize("where", ["both", "student", "teacher", "padding"])
def test_rows_that_rule_out_entries_go_by_the_definition(case: Case, where: str) -> None:
    student, teacher = random_pair(3, 9)
    out = slice(6, 9) if where == "padding" else slice(4, 5)
    if where != "teacher":
        student[:, out] = -math.inf
    if where != "student":
        teacher[:, out] = -math.inf
    objective, labels = from_settings(case), labels_for((student, teacher))
    values, gradient = value_and_gradient(objective, student, teacher, labels)
    got_values, got_gradient = rows_of(objective, (student, teacher), labels)
    torch.testing.assert_close(got_values, values, equal_nan=True)
    torch.testing.assert_close(got_gradient, gradient, equal_nan=True)


@each(EVERYTHING)
def test_entries_that_no_probability_reaches_count_as_if_they_were_not_there(case: Case) -> None:
    if case["kind"] in ("direct_logit", "concrete_score") or case.get("alpha") == 0:
        pytest.skip("sees the scores of entries without probability")
    pair = random_pair(3, 9)
    floor = torch.full((3, 4), -2e4, dtype=torch.float64)
    padded = (torch.cat([pair[0], floor], -1), torch.cat([pair[1], floor], -1))
    objective, labels = from_settings(case), labels_for(pair)
    values, gradient = rows_of(objective, pair, labels)
    wider_values, wider = rows_of(objective, padded, labels)
    torch.testing.assert_close(wider_values, values)
    torch.testing.assert_close(wider[:, :9], gradient)
    assert wider[:, 9:].abs().max() < 1e-12


@each(EVERYTHING)
def test_rows_far_apart_stay_finite_and_right(case: Case) -> None:
    student = torch.tensor([[1e4, 0.0, -3.0], [0.0, 1e4, 1.0], [200.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[0.0, 1e4, 2.0], [0.0, 1e4, 1.0], [0.0, 200.0, 0.0], [0.0, 200.0, 0.0]])
    objective, labels = from_settings(case), labels_for((student, teacher))
    wanted = value_and_gradient(objective, student.double(), teacher.double(), labels)
    assert_rows_are_the_definition(case, (student.double(), teacher.double()), rtol=1e-7, atol=1e-9)
    got = rows_of(objective, (student, teacher), labels)
    for mine, want in zip(got, wanted, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine.double(), want, rtol=2e-3, atol=2e-3)


@each(CASES)
@pytest.mark.parametrize("near", [False, True], ids=["apart", "close"])
def test_in_float32_rows_are_as_exact_as_the_definition(case: Case, *, near: bool) -> None:
    student, teacher = random_pair(64, 800, dtype=torch.float32)
    if near:
        teacher = student + 0.02 * teacher
    objective, labels = from_settings(case), labels_for((student, teacher))
    true = value_and_gradient(objective, student.double(), teacher.double(), labels)
    twin = value_and_gradient(objective, student, teacher, labels)
    got = rows_of(objective, (student, teacher), labels)
    for mine, other, exact in zip(got, twin, true, strict=True):
        # Half a unit in the last place of one of the sums is noise.
        assert relative_error(mine, exact) <= 1.5 * relative_error(other, exact) + 3e-7


@each([case for case in DIRECT_LOGITS if case["normalisation"] in ("min", "max", "range")])
def test_ends_that_several_entries_share_share_the_gradient(case: Case) -> None:
    student, teacher = random_pair(3, 9)
    student[:, [2, 5]], student[:, [1, 6, 7]] = -20.0, 30.0
    teacher[1] = 4.0
    assert_rows_are_the_definition(case, (student, teacher))


@each(DIRECT_LOGITS)
def test_a_row_of_equal_scores_has_no_size_to_divide_by(case: Case) -> None:
    _, teacher = random_pair(3, 8)
    assert_rows_are_the_definition(case, (torch.full((3, 8), 2.0, dtype=torch.float64), teacher))


@each(CASES)
def test_rows_do_not_remember_the_rows_before(case: Case) -> None:
    objective = from_settings(case)
    large, small = random_pair(6, 40, seed=5), random_pair(2, 11, seed=6)
    first = rows_of(objective, small, labels_for(small))
    rows_of(objective, large, labels_for(large))
    again = rows_of(objective, small, labels_for(small))
    forget_scratch()
    torch.testing.assert_close(again, first, rtol=0, atol=0)
