"""Numbers that were worked out once by hand and in fp64, to eight digits."""

import math

import pytest
import torch

from tests.objectives.kinds import Case, name_of
from tests.objectives.pairs import golden_pair, row, value_and_gradient
from tutelage.core.targets import TopKTarget
from tutelage.objectives import budget_t, from_settings, taid, top_k_divergence
from tutelage.objectives.divergences import ForwardKL

GOLDEN_VALUES: list[tuple[Case, float]] = [
    ({"kind": "forward_kl"}, 1.57827403),
    ({"kind": "reverse_kl"}, 1.93021975),
    ({"kind": "jeffreys"}, 1.57827403 + 1.93021975),
    ({"kind": "jsd", "teacher_share": 0.1}, 0.13398497),
    ({"kind": "jsd", "teacher_share": 0.5}, 0.35164568),
    ({"kind": "jsd", "teacher_share": 0.9}, 0.15004447),
    ({"kind": "forward_kl", "temperature": 1.1}, 1.36439198),
    ({"kind": "forward_kl", "clip": {"kind": "pointwise", "threshold": 0.05}}, -0.08332013),
    ({"kind": "forward_kl", "clip": {"kind": "pointwise", "threshold": 0.3}}, 0.41667987),
    ({"kind": "jsd", "clip": {"kind": "pointwise", "threshold": 0.05}}, 0.16205574),
    ({"kind": "reverse_kl", "clip": {"kind": "pointwise", "threshold": 0.05}}, -0.13840584),
    ({"kind": "forward_kl", "support": {"num_entries": 1}}, 0.95260718),
]


@pytest.mark.parametrize(
    ("case", "golden"), GOLDEN_VALUES, ids=lambda x: name_of(x) if isinstance(x, dict) else ""
)
def test_golden_value(case: Case, golden: float) -> None:
    values, gradient = value_and_gradient(from_settings(case), *golden_pair())
    assert values.item() == pytest.approx(golden, abs=1e-8)
    rows, teacher = golden_pair()
    assert from_settings(case).rows(rows, teacher, None).item() == pytest.approx(golden, abs=1e-8)
    torch.testing.assert_close(rows, gradient)


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_golden_gradient_of_the_pointwise_clip(threshold: float) -> None:
    # The teacher's favourite is the first token: the teacher gives it .64, the student .09, and
    # descent lowers it.
    golden = [0.01038786, -0.05890719, 0.04469786, 0.00382148]
    objective = from_settings(
        {"kind": "forward_kl", "clip": {"kind": "pointwise", "threshold": threshold}}
    )
    _, gradient = value_and_gradient(objective, *golden_pair())
    assert gradient[0].tolist() == pytest.approx(golden, abs=1e-8)
    rows, teacher = golden_pair()
    objective.rows(rows, teacher, None)
    assert rows[0].tolist() == pytest.approx(golden, abs=1e-8)


def test_golden_terms() -> None:
    student, teacher = (side.log_softmax(-1) for side in golden_pair())
    golden = [1.28782852, -0.08714432, -0.09617581, 0.47376564]
    assert ForwardKL().terms(student, teacher)[0].tolist() == pytest.approx(golden, abs=1e-8)


@pytest.mark.parametrize(
    ("temperature", "golden"),
    [
        (1.0, [-0.55676994, 0.14973850, 0.61185566, -0.20482421]),
        (1.1, [-0.46702001, 0.13412156, 0.52105629, -0.18815784]),
    ],
)
def test_golden_gradient_of_forward_kl(temperature: float, golden: list[float]) -> None:
    objective = ForwardKL(temperature=temperature)
    _, gradient = value_and_gradient(objective, *golden_pair())
    assert gradient[0].tolist() == pytest.approx(golden, abs=1e-8)


def test_golden_top_1_with_a_tail_bucket() -> None:
    student, teacher = golden_pair()
    logp, ids = teacher.log_softmax(-1).topk(1)
    values = top_k_divergence(student, TopKTarget(ids=ids, logp=logp), ForwardKL())
    assert values.item() == pytest.approx(0.95260718, abs=1e-8)


# Asymmetric, two tokens: the student says 1/2, 1/2 and the teacher 3/4, 1/4.
TWO_TOKENS = (row([0.0, 0.0]), row([math.log(3), 0.0]))


def test_each_direction_is_the_one_its_name_says() -> None:
    forward, _ = value_and_gradient(from_settings({"kind": "forward_kl"}), *TWO_TOKENS)
    reverse, _ = value_and_gradient(from_settings({"kind": "reverse_kl"}), *TWO_TOKENS)
    assert forward.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert reverse.item() == pytest.approx(0.5 * math.log(1 / 1.5) + 0.5 * math.log(2))


def test_teacher_share_is_the_teachers_part_of_the_mixture() -> None:
    # With 0.2 of the teacher the mixture is 0.55, 0.45; the other convention would be 0.7, 0.3.
    jsd, _ = value_and_gradient(from_settings({"kind": "jsd", "teacher_share": 0.2}), *TWO_TOKENS)
    by_hand = 0.2 * (0.75 * math.log(0.75 / 0.55) + 0.25 * math.log(0.25 / 0.45))
    by_hand += 0.8 * (0.5 * math.log(0.5 / 0.55) + 0.5 * math.log(0.5 / 0.45))
    assert jsd.item() == pytest.approx(by_hand)


def test_nats_are_summed_over_the_vocabulary_and_never_averaged() -> None:
    student, teacher = row([0.0, 0.0, 0.0]), row([math.log(2), 0.0, 0.0])
    values, _ = value_and_gradient(from_settings({"kind": "forward_kl"}), student, teacher)
    assert values.item() == pytest.approx(0.5 * math.log(1.5) + 0.5 * math.log(0.75))


TAID_TABLE = [
    # t, target, cross-entropy, forward KL, gradient
    (
        0.2,
        [0.17927618, 0.26744863, 0.48732317, 0.06595202],
        1.26404674,
        0.07356957,
        [-0.09213186, -0.03056581, 0.15659109, -0.03389342],
    ),
    (
        0.4,
        [0.31381309, 0.25692843, 0.31381309, 0.11544539],
        1.67108047,
        0.34529168,
        [-0.22666877, -0.02004561, 0.33010117, -0.08338678],
    ),
    (
        0.7,
        [0.51978275, 0.17302065, 0.11597921, 0.19121739],
        2.22642802,
        1.01657477,
        [-0.43263843, 0.06386217, 0.52793505, -0.15915879],
    ),
    (
        0.0,
        [0.08714432, 0.23688282, 0.64391426, 0.03205860],
        0.94753696,
        0.0,
        [0.0, 0.0, 0.0, 0.0],
    ),
    (
        1.0,
        [0.64391426, 0.08714432, 0.03205860, 0.23688282],
        2.52581099,
        1.57827403,
        [-0.55676994, 0.14973850, 0.61185566, -0.20482421],
    ),
]


@pytest.mark.parametrize(("t", "target", "cross_entropy", "kl", "gradient"), TAID_TABLE)
def test_golden_taid(
    t: float, target: list[float], cross_entropy: float, kl: float, gradient: list[float]
) -> None:
    student, teacher = golden_pair()
    moved = taid(student, teacher, t)
    values, slope = value_and_gradient(from_settings({"kind": "forward_kl"}), student, moved)
    entropies, slope_too = value_and_gradient(
        from_settings({"kind": "cross_entropy", "labels": "teacher"}), student, moved
    )

    assert moved.exp()[0].tolist() == pytest.approx(target, abs=1e-8)
    assert values.item() == pytest.approx(kl, abs=1e-8)
    assert entropies.item() == pytest.approx(cross_entropy, abs=1e-8)
    assert slope[0].tolist() == pytest.approx(gradient, abs=1e-8)
    assert slope_too[0].tolist() == pytest.approx(gradient, abs=1e-8)


@pytest.mark.parametrize(
    ("nats", "t", "distance", "bound"),
    [
        (0.01, 0.07976683, 0.11642773, 0.14142136),
        (0.05, 0.16804691, 0.25888869, 0.31622777),
        (0.5, 0.47631397, 0.78240839, 1.0),
    ],
)
def test_golden_budget(nats: float, t: float, distance: float, bound: float) -> None:
    student, teacher = golden_pair()
    found = budget_t(student, teacher, nats)
    l1 = (taid(student, teacher, found).exp() - student.softmax(-1)).abs().sum()
    assert found.item() == pytest.approx(t, abs=1e-8)
    assert l1.item() == pytest.approx(distance, abs=1e-8)
    assert l1.item() <= bound
    assert bound == pytest.approx(math.sqrt(2 * nats), abs=1e-8)


def test_the_students_own_entropy_is_the_cross_entropy_of_a_target_that_has_not_moved() -> None:
    student, teacher = golden_pair()
    assert torch.equal(taid(student, teacher, 0.0), student.log_softmax(-1).log_softmax(-1))
