"""TAID, budget and tempered targets: the numbered properties of the method, in fp64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.objectives.kinds import Case, each, name_of
from tests.objectives.pairs import Pair, random_pair, student_and_teacher, value_and_gradient
from tutelage.core.errors import ConfigError
from tutelage.objectives import (
    Budget,
    Move,
    MoveSettings,
    NoMove,
    Taid,
    Tempered,
    budget_t,
    from_settings,
    is_inert,
    is_learning_rate_ramp,
    taid,
    tempered,
)
from tutelage.objectives.divergences import ForwardKL, ReverseKL, forward_kl, reverse_kl
from tutelage.objectives.row_kernels import budget_rows

TIMES = st.floats(0, 1)


def logp_of(pair: Pair) -> Pair:
    return pair[0].log_softmax(-1), pair[1].log_softmax(-1)


@settings(max_examples=20)
@given(pair=student_and_teacher(), t=TIMES)
def test_the_target_is_the_geometric_mean_and_the_gradient_what_is_missing(
    pair: Pair, t: float
) -> None:
    student, teacher = pair
    q, p = student.softmax(-1), teacher.softmax(-1)
    mean = q ** (1 - t) * p**t
    mean = mean / mean.sum(-1, keepdim=True)

    moved = taid(student, teacher, t)
    _, gradient = value_and_gradient(ForwardKL(), student, moved)

    torch.testing.assert_close(moved.exp(), mean)
    torch.testing.assert_close(gradient, q - mean)
    assert gradient.sum(-1).abs().max() < 1e-12


@settings(max_examples=10)
@given(pair=student_and_teacher(), t=TIMES)
def test_a_constant_added_to_either_side_moves_nothing(pair: Pair, t: float) -> None:
    student, teacher = pair
    torch.testing.assert_close(taid(student + 7, teacher - 3, t), taid(student, teacher, t))


def test_the_ends_are_the_student_with_no_loss_and_the_teacher_with_forward_kl() -> None:
    student, teacher = random_pair(5, 6)
    start, no_gradient = value_and_gradient(ForwardKL(), student, taid(student, teacher, 0.0))
    assert start.abs().max() < 1e-12
    assert no_gradient.abs().max() < 1e-12
    end = value_and_gradient(ForwardKL(), student, taid(student, teacher, 1.0))
    torch.testing.assert_close(end, value_and_gradient(ForwardKL(), student, teacher))


def test_no_gradient_reaches_the_teacher_or_the_student_through_the_target() -> None:
    student, teacher = (scores.requires_grad_() for scores in random_pair(5, 6))
    for move in (NoMove(), Taid(), Budget(nats=0.1), Tempered(teacher_temperature=2.0)):
        assert not move.moved(student, teacher, t=0.5).requires_grad


def test_the_way_to_the_teacher_only_gets_steeper_by_the_variance_of_the_gap() -> None:
    student, teacher = logp_of(random_pair(20, 6))
    gap, step = teacher - student, 1e-5

    def cost(t: float) -> Tensor:
        return forward_kl(student, taid(student, teacher, t))

    for t in (0.1, 0.5, 0.9):
        p = taid(student, teacher, t).exp()
        variance = (p * gap.square()).sum(-1) - (p * gap).sum(-1).square()
        slope = (cost(t + step) - cost(t - step)) / (2 * step)
        torch.testing.assert_close(slope, t * variance, rtol=1e-5, atol=1e-7)
        assert (cost(t + 0.1) >= cost(t)).all()
    q = student.exp()
    at_student = (q * gap.square()).sum(-1) - (q * gap).sum(-1).square()
    torch.testing.assert_close(cost(1e-3), 1e-6 / 2 * at_student, rtol=2e-2, atol=1e-12)


def test_it_starts_in_the_direction_of_reverse_kl() -> None:
    student, teacher = random_pair(20, 6)
    _, gradient = value_and_gradient(ForwardKL(), student, taid(student, teacher, 1e-6))
    _, reverse = value_and_gradient(ReverseKL(), student, teacher)
    torch.testing.assert_close(gradient / 1e-6, reverse, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(pair=student_and_teacher(), t=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_the_target_is_the_compromise_between_two_reverse_kls(
    pair: Pair, t: float, seed: int
) -> None:
    student, teacher = logp_of(pair)
    target = taid(student, teacher, t)
    log_z = ((1 - t) * student + t * teacher).logsumexp(-1)
    generator = torch.Generator().manual_seed(seed)
    other = torch.randn(student.shape, generator=generator).double().log_softmax(-1)

    compromise = (1 - t) * reverse_kl(other, student) + t * reverse_kl(other, teacher)
    torch.testing.assert_close(compromise, reverse_kl(other, target) - log_z)


@settings(max_examples=20)
@given(pair=student_and_teacher(), t=TIMES)
def test_the_gradient_is_bounded_by_the_cost(pair: Pair, t: float) -> None:
    student, teacher = logp_of(pair)
    target = taid(student, teacher, t)
    distance = (target.exp() - student.exp()).abs().sum(-1)
    bound = (2 * forward_kl(student, target).clamp(min=0)).sqrt()
    assert (distance <= bound + 1e-7).all()


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_conditioning_on_kept_tokens_commutes_and_a_lumped_tail_overestimates(t: float) -> None:
    student, teacher = logp_of(random_pair(20, 8))
    target = taid(student, teacher, t)
    kept = slice(0, 3)
    torch.testing.assert_close(
        taid(student[:, kept], teacher[:, kept], t), target[:, kept].log_softmax(-1)
    )
    tail = slice(3, 8)
    true_tail = (student[:, tail] * (1 - t) + teacher[:, tail] * t).exp().sum(-1)
    lumped = student[:, tail].exp().sum(-1) ** (1 - t) * teacher[:, tail].exp().sum(-1) ** t
    assert (true_tail <= lumped + 1e-12).all()


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_reverse_kl_to_the_moved_target_is_only_a_shorter_step(t: float) -> None:
    student, teacher = random_pair(20, 6)
    _, gradient = value_and_gradient(ReverseKL(), student, taid(student, teacher, t))
    _, reverse = value_and_gradient(ReverseKL(), student, teacher)
    torch.testing.assert_close(gradient, t * reverse)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_commutes_with_the_move(temperature: float) -> None:
    student, teacher = random_pair(5, 6)
    after = (taid(student, teacher, 0.4) / temperature).log_softmax(-1)
    torch.testing.assert_close(after, taid(student / temperature, teacher / temperature, 0.4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_scores_are_widened_before_they_are_mixed(dtype: torch.dtype) -> None:
    student, teacher = random_pair(5, 50, dtype=dtype)
    for move in (Taid(), Budget(nats=0.1), Tempered(teacher_temperature=1.3), NoMove()):
        moved = move.moved(student, teacher, t=0.01)
        assert moved.dtype == torch.float32
        assert torch.equal(moved, move.moved(student.float(), teacher.float(), t=0.01))


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_ruled_out_tokens_stay_finite_at_every_time(t: float) -> None:
    student, teacher = random_pair(4, 6)
    student[0, 1] = teacher[1, 2] = student[2, 3] = teacher[2, 3] = -math.inf
    values, gradient = value_and_gradient(ForwardKL(), student, taid(student, teacher, t))
    assert values.isfinite().all()
    assert gradient.isfinite().all()


def test_the_target_has_no_jump_where_a_schedule_arrives() -> None:
    student, teacher = random_pair(4, 6)
    student[0, 1] = teacher[1, 2] = -math.inf
    for end, near in ((1.0, 1 - 1e-9), (0.0, 1e-9)):
        torch.testing.assert_close(
            taid(student, teacher, end), taid(student, teacher, near), rtol=1e-6, atol=1e-6
        )


def test_every_position_may_have_its_own_time_and_temperature() -> None:
    student, teacher = random_pair(3, 6)
    each_own = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    moved, cooled = taid(student, teacher, each_own), tempered(teacher, each_own + 1)
    for i, t in enumerate(each_own.tolist()):
        torch.testing.assert_close(moved[i], taid(student[i], teacher[i], t))
        torch.testing.assert_close(cooled[i], tempered(teacher[i], t + 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_budget_is_kept_and_used_up(dtype: torch.dtype) -> None:
    student, teacher = random_pair(40, 20)
    teacher = student + teacher * torch.linspace(0, 1, 40).double().unsqueeze(-1)
    student, teacher = logp_of((student.to(dtype), teacher.to(dtype)))
    nats = 0.3
    t = budget_t(student, teacher, nats)
    target = Budget(nats=nats).moved(student, teacher)
    cost = forward_kl(student, target)

    assert (cost <= nats + 1e-6).all()
    assert ((target.exp() - student.exp()).abs().sum(-1) <= math.sqrt(2 * nats) + 1e-6).all()
    affordable = forward_kl(student, teacher) <= nats
    assert 0 < affordable.sum() < 40
    assert (t[affordable] == 1).all()
    torch.testing.assert_close(
        cost[~affordable], torch.full_like(cost[~affordable], nats), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("nats", [1e-4, 0.01, 0.5, 5.0, 50.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_the_rows_search_finds_what_halving_finds(spread: float, nats: float) -> None:
    student, teacher = (side * spread + 20 for side in random_pair(9, 60))
    halved = budget_t(student, teacher, nats)
    found = budget_rows(student, teacher, nats)
    torch.testing.assert_close(found, halved, rtol=1e-11, atol=1e-12)
    assert torch.equal(found == 1, halved == 1)

    pair = student.float(), teacher.float()
    exact = budget_t(pair[0].double(), pair[1].double(), nats)
    slack = 1.5 * (budget_t(*pair, nats) - exact).abs().max() + 5e-6
    assert (budget_rows(*pair, nats) - exact).abs().max() <= slack


def test_rows_searched_together_find_what_each_finds_alone() -> None:
    student, teacher = random_pair(8, 30)
    teacher[3] = student[3]
    together = budget_rows(student, teacher, 0.4)
    alone = [budget_rows(student[i : i + 1], teacher[i : i + 1], 0.4) for i in range(8)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    assert together[3] == 1


class Softmaxes(TorchDispatchMode):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += "softmax" in str(func)
        return func(*args, **(kwargs or {}))


def test_the_search_looks_a_few_times_whoever_else_is_searched_with() -> None:
    student, teacher = random_pair(12, 7)
    with Softmaxes() as seen:
        budget_rows(student, teacher, 0.5)
    assert seen.count <= 12


def test_a_tempered_teacher_is_its_scores_divided() -> None:
    _, teacher = random_pair(3, 6)
    move = Tempered(teacher_temperature=0.5)
    torch.testing.assert_close(move.moved(teacher, teacher).softmax(-1), (teacher * 2).softmax(-1))


@pytest.mark.parametrize(
    "move",
    [NoMove(), Taid(), Budget(nats=0.1), Tempered(teacher_temperature=2.0)],
    ids=lambda move: move.kind,
)
def test_rows_are_moved_in_place_and_the_student_left_alone(move: Move) -> None:
    student, teacher = random_pair(3, 6)
    before = student.clone()
    moved = move.moved(student, teacher, t=0.4)
    move.move_rows(student, teacher, t=0.4)
    torch.testing.assert_close(teacher.log_softmax(-1), moved.log_softmax(-1))
    assert torch.equal(student, before)


def test_rows_with_ruled_out_entries_are_moved_the_same() -> None:
    student, teacher = random_pair(3, 6)
    student[0, 1] = teacher[1, 2] = -math.inf
    for move in (NoMove(), Taid(), Budget(nats=0.1), Tempered(teacher_temperature=2.0)):
        moved, rows = move.moved(student, teacher, t=0.4), teacher.clone()
        move.move_rows(student, rows, t=0.4)
        torch.testing.assert_close(rows.log_softmax(-1), moved.log_softmax(-1))


@pytest.mark.parametrize("move", [Taid(), Budget(nats=0.05)], ids=lambda move: move.kind)
def test_a_free_student_arrives_at_the_teacher(move: Move) -> None:
    student, teacher = random_pair(2, 4, dtype=torch.float32)
    for _ in range(80):
        moved = move.moved(student, teacher, t=0.5)
        _, gradient = value_and_gradient(ForwardKL(), student, moved)
        student = student - 4 * gradient
    torch.testing.assert_close(student.softmax(-1), teacher.softmax(-1), rtol=0, atol=1e-2)


RAMPS: list[Case] = [
    {"kind": "reverse_kl"},
    {"kind": "reverse_kl", "temperature": 2.0, "scale_by_t2": True},
    {"kind": "symmetric_kl", "reverse_weight": 1.0},
    {"kind": "skew_reverse_kl", "student_share": 0.0},
    {"kind": "alpha_beta", "alpha": 0.0, "beta": 1.0},
    {"kind": "concrete_score", "weights": ["student", "student"]},
    {"kind": "concrete_score", "weights": ["student", "uniform"], "weight_temperature": 1.5},
    {"kind": "direct_logit", "weight": "uniform", "normalisation": "mean"},
]
NO_RAMPS: list[Case] = [
    {"kind": "forward_kl"},
    {"kind": "jsd"},
    {"kind": "jeffreys"},
    {"kind": "skew_reverse_kl"},
    {"kind": "concrete_score", "weights": ["teacher", "student"]},
    {"kind": "concrete_score", "mixture": 0.15},
    {"kind": "cross_entropy", "labels": "teacher"},
    {"kind": "cross_entropy"},
]


@each(RAMPS)
def test_what_is_linear_in_the_target_makes_taid_a_learning_rate_ramp(case: Case) -> None:
    assert is_learning_rate_ramp(Taid(), from_settings(case))
    assert not is_learning_rate_ramp(Budget(nats=0.1), from_settings(case))
    assert not is_inert(Taid(), from_settings(case))


@each(NO_RAMPS)
def test_everything_else_does_not(case: Case) -> None:
    assert not is_learning_rate_ramp(Taid(), from_settings(case))


@pytest.mark.parametrize(
    ("move", "case", "inert"),
    [
        (Taid(), {"kind": "cross_entropy"}, True),
        (Taid(), {"kind": "cross_entropy", "labels": "teacher"}, False),
        (NoMove(), {"kind": "cross_entropy"}, False),
        (Tempered(teacher_temperature=1.0), {"kind": "forward_kl"}, True),
        (Tempered(teacher_temperature=2.0), {"kind": "forward_kl"}, False),
        (Budget(nats=0.1), {"kind": "jsd"}, False),
    ],
    ids=lambda x: name_of(x) if isinstance(x, dict) else None,
)
def test_a_move_nobody_looks_at_is_noticed(move: Move, case: Case, *, inert: bool) -> None:
    assert is_inert(move, from_settings(case)) is inert


def test_taid_without_a_time_asks_for_a_clock() -> None:
    with pytest.raises(ConfigError, match=r"taid has no t; it must be .* Give it a clock"):
        Taid().moved(*random_pair(2, 4))


REFUSED = [
    {"t_start": -0.1},
    {"t_start": 1.1},
    {"t_end": 0.0},
    {"t_end": 1.1},
    {"t_start": 0.8, "t_end": 0.4},
    {"alpha": -1e-3},
    {"alpha": 1.1},
    {"alpha": "fast"},
    {"momentum": 1.0},
    {"momentum": -0.1},
    {"rate": 0.0},
    {"schedule": "cosine"},
    {"beta": 0.99},
]


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_a_schedule_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MoveSettings).validate_python({"kind": "taid", **wrong})


def test_taid_settings_are_the_papers_by_default_and_take_auto() -> None:
    move = Taid()
    assert (move.t_start, move.t_end, move.alpha, move.momentum) == (0.4, 1.0, 5e-4, 0.99)
    assert Taid(schedule="adaptive", alpha="auto", rate=2.0).alpha == "auto"
    assert Taid(schedule="exponential", rate=2.0).rate == 2
    assert Taid(schedule="constant", t_start=0.5).t_start == 0.5
    assert Taid(t_start=0.5, t_end=0.5).t_end == 0.5
