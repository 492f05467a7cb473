"""Stage II of PADD: a teacher whose temperature follows the reward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.pairs import random_pair, value_and_gradient
from tutelage.core.errors import ConfigError
from tutelage.core.targets import Head, HiddenTarget, LogitsTarget
from tutelage.objectives import RewardTemperature, from_settings, reward_temperature, tempered
from tutelage.objectives.divergences import ForwardKL
from tutelage.objectives.fused import FusedOptions, fused_loss
from tutelage.objectives.plain import plain_per_token

ADVANTAGES = (-math.sqrt(7), -1.0, -1 / math.sqrt(7), 0.0, 1 / math.sqrt(7), 1.0, math.sqrt(7))
TABLE = {
    "literal": (0.133, 0.538, 0.813, 1.0, 1.187, 1.462, 1.867),
    "intended": (1.867, 1.462, 1.187, 1.0, 0.813, 0.538, 0.133),
    "inverse": (7.547, 1.859, 1.230, 1.0, 0.843, 0.684, 0.535),
}
"""The table of the method: tau 1, kappa 0.5, the largest, usual and least advantages of eight."""


def entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("mode", TABLE)
def test_the_table_of_temperatures(mode) -> None:
    found = reward_temperature(torch.tensor(ADVANTAGES, dtype=torch.float64), mode=mode)
    assert found.tolist() == pytest.approx(TABLE[mode], abs=6e-4)


def test_what_the_text_asks_for_is_the_default() -> None:
    assert RewardTemperature().mode == "intended"
    advantages = torch.tensor(ADVANTAGES)
    assert torch.equal(
        reward_temperature(advantages), reward_temperature(advantages, mode="intended")
    )


def test_an_advantage_of_zero_is_plain_distillation_at_the_base_temperature() -> None:
    student, teacher = random_pair(5, 6)
    for mode in TABLE:
        move = RewardTemperature(temperature=1.7, mode=mode)
        moved = move.moved(student, teacher, t=torch.zeros(5))
        torch.testing.assert_close(moved, tempered(teacher, 1.7))
        calm = RewardTemperature(temperature=1.7, response=0, mode=mode)
        torch.testing.assert_close(calm.moved(student, teacher, t=torch.randn(5)), moved)


@pytest.mark.parametrize("mode", TABLE)
def test_what_did_well_is_taught_with_less_doubt_and_its_favourite_stays(mode) -> None:
    student, teacher = random_pair(1, 9)
    spread = torch.tensor(ADVANTAGES, dtype=torch.float64)
    moved = RewardTemperature(mode=mode).moved(
        student.expand(7, -1), teacher.expand(7, -1), t=spread
    )
    doubts = entropy(moved)
    falling = bool((doubts[1:] < doubts[:-1]).all())
    assert falling == (mode != "literal")
    assert bool((doubts[1:] > doubts[:-1]).all()) == (mode == "literal")
    assert (moved.argmax(-1) == teacher.argmax(-1)).all()


@settings(max_examples=30)
@given(st.floats(-50, 50), st.sampled_from(sorted(TABLE)))
def test_no_advantage_is_so_large_that_the_temperature_leaves_its_bounds(
    advantage: float, mode
) -> None:
    (found,) = reward_temperature(torch.tensor([advantage]), mode=mode).tolist()
    assert 0.05 <= found <= 20 * (1 + 1e-6)


def test_a_student_at_the_moved_teacher_has_nothing_to_learn() -> None:
    _, teacher = random_pair(7, 6)
    moved = RewardTemperature().moved(teacher, teacher, t=torch.tensor(ADVANTAGES))
    value, gradient = value_and_gradient(ForwardKL(), moved.clone(), moved)
    assert value.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


def test_nothing_flows_into_advantages_or_teacher() -> None:
    student, teacher = (scores.requires_grad_() for scores in random_pair(7, 6))
    advantages = torch.tensor(ADVANTAGES, requires_grad=True)
    assert not RewardTemperature().moved(student, teacher, t=advantages).requires_grad
    loss = ForwardKL().from_logits(
        student, RewardTemperature().moved(student, teacher, t=advantages)
    )
    found = torch.autograd.grad(loss.sum(), (student, teacher, advantages), allow_unused=True)
    assert found[0].abs().max() > 0
    assert found[1] is None
    assert found[2] is None


@pytest.mark.parametrize(
    "objective",
    [{"kind": "forward_kl"}, {"kind": "reverse_kl"}, {"kind": "jsd"}, {"kind": "concrete_score"}],
    ids=lambda one: one["kind"],
)
@pytest.mark.parametrize("given", ["hidden", "logits"])
def test_the_fused_path_gives_each_token_its_own_temperature(objective, given: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    # The student's head is padded by three entries that the teacher does not have.
    head = Head(weight=torch.randn(19, 6, dtype=torch.float64, requires_grad=True))
    theirs = torch.randn(40, 5, dtype=torch.float64)
    other = torch.randn(16, 5, dtype=torch.float64)
    labels = torch.randint(16, (40,))
    target = (
        HiddenTarget(hidden=theirs, head=Head(weight=other), labels=labels)
        if given == "hidden"
        else LogitsTarget(logits=theirs @ other.T, labels=labels)
    )
    advantages = torch.randn(40, dtype=torch.float64)
    one = from_settings(objective)
    options = FusedOptions(move=RewardTemperature(), t=advantages, tile_tokens=16)
    weights = torch.rand(40)
    fused = fused_loss(hidden, head, target, one, token_weights=weights, options=options)
    found = torch.autograd.grad(fused.loss, (hidden, head.weight))

    temperature = 1 - torch.tanh(0.5 * advantages)
    student = (hidden @ head.weight.T)[:, :16]
    moved = (theirs @ other.T) / temperature[:, None]
    expected = (one.from_logits(student, moved, labels) * weights.double()).sum()
    torch.testing.assert_close(fused.loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (hidden, head.weight)))

    plain = plain_per_token(hidden, head, target, one, options)
    torch.testing.assert_close(plain, fused.per_token)
    assert moved.softmax(-1).sum(-1).allclose(torch.ones(40, dtype=torch.float64))


def test_a_token_without_an_advantage_has_no_temperature() -> None:
    student, teacher = random_pair(2, 3)
    with pytest.raises(ConfigError, match="reward_temperature has no advantages"):
        RewardTemperature().moved(student, teacher)
