"""The plain twin that training can use in place of the fused loss, against the tests' own."""

import pytest
import torch

from tests.objectives.fused.problems import (
    FEATURES,
    hidden_of,
    in_dtype,
    make_case,
    objective_of,
    plain,
    scores_of,
)
from tutelage.core.targets import HiddenTarget, LogitsTarget
from tutelage.objectives import Taid, taid
from tutelage.objectives.fused import FusedOptions
from tutelage.objectives.plain import plain_logits, plain_per_token

NO_OPTIONS = FusedOptions()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", ["forward_kl", "cross_entropy"])
def test_every_head_gives_the_values_and_gradients_of_the_definition(
    features: str, kind: str
) -> None:
    case = in_dtype(make_case(FEATURES[features]), torch.float64)
    objective = objective_of({"kind": kind})
    values, gradients = plain(case, objective)

    found = plain_per_token(hidden_of(case), case.head, case.target, objective, NO_OPTIONS)
    loss = (found * case.weights.to(found.dtype)).sum()

    torch.testing.assert_close(found, values)
    torch.testing.assert_close(list(torch.autograd.grad(loss, case.leaves())), gradients)


def test_a_move_is_made_before_the_objective_looks() -> None:
    case = in_dtype(make_case(FEATURES["plain"]), torch.float64)
    objective = objective_of({"kind": "forward_kl"})
    assert isinstance(case.target, HiddenTarget)
    student = scores_of(case.hidden, case.head)
    teacher = scores_of(case.target.hidden, case.target.head)

    options = FusedOptions(move=Taid(), t=0.4)
    found = plain_per_token(case.hidden, case.head, case.target, objective, options)
    moved = LogitsTarget(logits=taid(student, teacher, 0.4))

    torch.testing.assert_close(found, objective.per_token(student, moved))
    assert not torch.allclose(found, plain(case, objective)[0])


def test_half_precision_products_are_widened_before_they_are_scaled() -> None:
    case = make_case(FEATURES["scale"])
    found = plain_logits(case.hidden, case.head, torch.bfloat16)
    product = case.hidden.bfloat16() @ case.head.weight.bfloat16().T
    torch.testing.assert_close(found, product.float() * case.head.scale, rtol=0, atol=0)
