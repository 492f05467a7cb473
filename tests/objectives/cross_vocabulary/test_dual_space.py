"""Distillation in two spaces: its definition, its gradients, and which pairs it looks at."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from tests.objectives.cross_vocabulary.problems import Problem, problem
from tutelage.core.errors import ConfigError
from tutelage.objectives import AlignedKL, Bridge, DualSpace
from tutelage.objectives.fused import FusedOptions
from tutelage.objectives.groupwise import can_cross, groupwise_loss, needs_bridge
from tutelage.objectives.plain import plain_logits


def bridged() -> Problem:
    own = problem()
    # Another pair of the same word; the third group of one token on each side is no such pair.
    own.target.labels[6] = own.target.words.student_ids[2]
    assert own.target.teacher.labels is not None
    own.target.teacher.labels[5] = own.target.words.teacher_ids[2]
    return replace(own, target=replace(own.target, bridge=Bridge(4, 5, seed=1).double()))


def loss_of(own: Problem, objective: DualSpace, **options: int) -> Tensor:
    return groupwise_loss(
        own.hidden,
        own.head,
        own.target,
        objective,
        token_weights=own.weights,
        options=FusedOptions(**options),
    ).loss


@pytest.mark.parametrize("only_right", [True, False])
@torch.no_grad()
def test_it_is_its_definition_on_pairs_of_the_same_word(*, only_right: bool) -> None:
    own = bridged()
    bridge, target = own.target.bridge, own.target
    assert isinstance(bridge, Bridge)
    head = replace(own.head, num_real=11)
    wanted = 0.0
    for mine, theirs in ((0, 0), (6, 5)):
        q = (plain_logits(own.hidden[[mine]], head)[0] / 2).softmax(0)
        projected = plain_logits(bridge.to_student(target.teacher.hidden[[theirs]]), head)[0]
        p = (plain_logits(target.teacher.hidden[[theirs]], target.teacher.head)[0] / 2).softmax(0)
        r = (
            plain_logits(bridge.to_teacher(own.hidden[[mine]]), target.teacher.head)[0] / 2
        ).softmax(0)
        h, y = (projected / 2).softmax(0), int(target.labels[mine])
        right = int(projected.argmax()) == y
        taught = float((h * (h / q).log()).sum()) if right or not only_right else 0.0
        said = -float(projected.log_softmax(0)[y])
        other = float((p * (p / r).log()).sum())
        wanted += float(own.weights[mine]) * (3.0 * (said + taught) + 0.5 * other)
    objective = DualSpace(student_space=3.0, teacher_space=0.5, only_right=only_right)
    for tile in (1, 2, 9):
        found = loss_of(own, objective, tile_tokens=tile)
        assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_gradients_are_those_of_finite_differences_in_student_and_projections() -> None:
    own = bridged()
    bridge = own.target.bridge
    assert isinstance(bridge, Bridge)
    names = [name for name, _ in bridge.named_parameters()]

    # What is held still has no gradient that finite differences would agree with.
    objective = DualSpace(only_right=False, student_space=0.0)

    def loss(hidden: Tensor, weight: Tensor, *projections: Tensor) -> Tensor:
        class Moved(torch.nn.Module):
            def forward(self) -> Tensor:
                return loss_of(
                    replace(own, hidden=hidden, head=replace(own.head, weight=weight)), objective
                )

        module = Moved()
        module.bridge = bridge
        values = {f"bridge.{n}": p for n, p in zip(names, projections, strict=True)}
        return functional_call(module, values, ())

    inputs = [own.hidden, own.head.weight, *(p.detach() for p in bridge.parameters())]
    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in inputs])


def test_what_is_held_still_gets_no_gradient() -> None:
    own = bridged()
    bridge = own.target.bridge
    assert isinstance(bridge, Bridge)
    hidden, weight = own.hidden.clone().requires_grad_(), own.head.weight.clone().requires_grad_()
    moved = replace(own, hidden=hidden, head=replace(own.head, weight=weight))
    objective = DualSpace(teacher_space=0.0, only_right=True)
    # Where the projected teacher is never right, only its projection has anything to learn.
    with torch.no_grad():
        bridge.to_student.weight.zero_()
        bridge.to_student.bias.copy_(-100 * own.head.weight[own.target.labels[[0, 6]]].sum(0))
    loss_of(moved, objective).backward()
    assert bridge.to_student.bias.grad is not None
    assert bridge.to_student.bias.grad.abs().sum() > 0
    assert hidden.grad is None or not hidden.grad.any()
    assert weight.grad is None or not weight.grad.any()


def test_the_projected_teacher_learns_from_the_text_and_not_from_the_student() -> None:
    own = bridged()
    bridge = own.target.bridge
    assert isinstance(bridge, Bridge)
    objective = DualSpace(teacher_space=0.0, only_right=False)
    found: list[Tensor] = []
    for hidden in (own.hidden, own.hidden.flip(0)):
        bridge.zero_grad()
        loss_of(replace(own, hidden=hidden.clone().requires_grad_()), objective).backward()
        assert bridge.to_student.weight.grad is not None
        found.append(bridge.to_student.weight.grad.clone())
    assert torch.equal(*found)


def test_both_parts_are_never_negative_and_the_students_scores_count_in_one_each() -> None:
    own = bridged()
    for objective in (
        DualSpace(teacher_space=0.0, only_right=False),
        DualSpace(student_space=0.0),
    ):
        hidden = own.hidden.clone().requires_grad_()
        found = loss_of(replace(own, hidden=hidden), objective)
        (gradient,) = torch.autograd.grad(found, hidden)
        assert float(found.detach()) > 0
        assert gradient.abs().sum(dim=1).nonzero()[:, 0].tolist() == [0, 6]


def test_a_pair_of_tokens_that_are_not_the_same_word_is_left_out() -> None:
    own = bridged()
    shared = own.target.words.student_ids
    for word in range(own.target.words.num_student):
        own.target.labels[6] = word
        hidden = own.hidden.clone().requires_grad_()
        found = loss_of(replace(own, hidden=hidden), DualSpace())
        (gradient,) = torch.autograd.grad(found, hidden)
        looked_at = gradient.abs().sum(dim=1).nonzero()[:, 0].tolist()
        assert looked_at == ([0, 6] if word == shared[2] else [0])


def test_without_a_pair_every_projection_still_has_a_gradient_to_share() -> None:
    """Another process may have pairs, and waits for this one's gradients."""
    own = bridged()
    bridge = own.target.bridge
    assert isinstance(bridge, Bridge)
    loss_of(replace(own, weights=torch.zeros_like(own.weights)), DualSpace()).backward()
    gradients = [weight.grad for weight in bridge.parameters()]
    assert all(one is not None and not one.any() for one in gradients)


def test_it_needs_projections_and_another_vocabulary() -> None:
    assert can_cross(DualSpace())
    assert needs_bridge(DualSpace())
    with pytest.raises(ConfigError, match="the student has no bridge"):
        loss_of(problem(), DualSpace())
    with pytest.raises(ConfigError, match=r"it must have another.*Use forward_kl"):
        DualSpace().from_logits(torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"student_space": 0.5}, {"teacher_space": 0.5}, {"only_right": False}],
)
@torch.no_grad()
def test_every_setting_changes_something(settings: dict[str, Any]) -> None:
    assert float(loss_of(bridged(), DualSpace())) != pytest.approx(
        float(loss_of(bridged(), DualSpace(**settings)))
    )


def test_what_words_of_one_side_count_changes_something() -> None:
    own = bridged()
    losses = {
        float(groupwise_loss(own.hidden, own.head, own.target, one, token_weights=own.weights).loss)
        for one in (AlignedKL(), AlignedKL(rest_weight=0.5), AlignedKL(rest_weight=0))
    }
    assert len(losses) == 3
