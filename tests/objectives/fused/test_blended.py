"""Several teachers in the fused path: their mixture and product, as defined on whole tables."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.fused.problems import Case, Features, fused, in_dtype, make_case, scores_of
from tutelage.core.targets import HiddenTarget, LogitsTarget, SeveralTarget
from tutelage.objectives import Taid, from_settings
from tutelage.objectives.fused import FusedOptions, fused_measures
from tutelage.objectives.plain import plain_per_token


def several(blend: Any, *, one_each: bool = False) -> tuple[Case, SeveralTarget]:
    """Three teachers of other widths, heads and sizes."""
    case = in_dtype(make_case(Features(bias=True, softcap=4.0)), torch.float64)
    shapes = [{"teacher_width": 9}, {"teacher_softcap": 2.0}, {"teacher_num_real": 47}]
    members = [
        in_dtype(make_case(Features(**shape), seed=seed), torch.float64).target
        for seed, shape in enumerate(shapes, 3)
    ]
    weights = torch.rand(13, 3, generator=torch.Generator().manual_seed(2)).double()
    if one_each:
        weights = torch.nn.functional.one_hot(torch.arange(13) % 3, 3).double()
    weights = weights / weights.sum(1, keepdim=True)
    assert all(isinstance(one, HiddenTarget) for one in members)
    labels = case.target.labels
    target = SeveralTarget(members=tuple(members), weights=weights, blend=blend, labels=labels)
    return replace(case, target=target), target


def whole(target: SeveralTarget) -> Tensor:
    """The definition, on probabilities."""
    p = torch.stack([scores_of(t.hidden, t.head)[:, :47].softmax(-1) for t in target.members], 1)
    share = target.weights[:, :, None]
    if target.blend == "mixture":
        return (share * p).sum(1).log()
    return (p**share).prod(1).log().log_softmax(-1)


@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "concrete_score"])
@pytest.mark.parametrize("one_each", [False, True])
@pytest.mark.parametrize("blend", ["mixture", "product"])
def test_blended_teachers_are_the_one_teacher_they_come_to(
    blend: Any, kind: str, *, one_each: bool
) -> None:
    case, target = several(blend, one_each=one_each)
    objective = from_settings({"kind": kind})
    same = replace(case, target=LogitsTarget(logits=whole(target), labels=target.labels))
    for options in ({}, {"tile_tokens": 4}, {"move": Taid(), "t": 0.3}):
        got, want = fused(case, objective, **options), fused(same, objective, **options)
        torch.testing.assert_close(got[0], want[0])
        for a, b in zip(got[1], want[1], strict=True):
            torch.testing.assert_close(a, b)
        if "tile_tokens" not in options:
            plainly = plain_per_token(
                case.hidden, case.head, target, objective, FusedOptions(**options)
            )
            torch.testing.assert_close(plainly.detach(), want[0])


def test_a_teacher_that_is_not_asked_may_say_anything() -> None:
    case, target = several("mixture", one_each=True)
    first, *others = target.members
    hidden = first.hidden.clone()
    hidden[target.weights[:, 0] == 0] = torch.nan
    spoilt = replace(target, members=(replace(first, hidden=hidden), *others))
    for blend in ("mixture", "product"):
        objective = from_settings({"kind": "forward_kl"})
        got, _ = fused(replace(case, target=replace(spoilt, blend=blend)), objective)
        want, _ = fused(replace(case, target=replace(target, blend=blend)), objective)
        torch.testing.assert_close(got, want)


def test_a_teacher_blended_with_itself_is_itself() -> None:
    case, target = several("mixture")
    one = target.members[0]
    objective = from_settings({"kind": "reverse_kl"})
    want, _ = fused(replace(case, target=replace(one, labels=target.labels)), objective)
    for blend in ("mixture", "product"):
        twice = SeveralTarget(members=(one, one), weights=target.weights[:, :2], blend=blend)
        total = twice.weights.sum(1, keepdim=True)
        twice = replace(twice, weights=twice.weights / total)
        got, _ = fused(replace(case, target=twice), objective)
        torch.testing.assert_close(got, want)


def test_several_teachers_are_measured_as_one() -> None:
    case, target = several("product")
    got = fused_measures(case.hidden.detach(), case.head, target)
    want = fused_measures(case.hidden.detach(), case.head, LogitsTarget(logits=whole(target)))
    for name in ("forward_kl", "reverse_kl", "teacher_entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name))
    assert torch.equal(got.teacher_top, want.teacher_top)
