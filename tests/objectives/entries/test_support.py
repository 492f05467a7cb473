"""Supports: with everything they change nothing, with a tail they never cost more."""

import pytest
import torch

from tests.objectives.kinds import SUPPORTED, Case, each
from tests.objectives.pairs import random_pair, value_and_gradient
from tutelage.core.errors import ConfigError
from tutelage.core.targets import TopKTarget
from tutelage.objectives import Divergence, from_settings, top_k_divergence
from tutelage.objectives.entries import TopSupport

BY = ["teacher", "student", "union"]
REST = ["tail_bucket", "renormalised"]


@pytest.mark.parametrize("num_entries", [7, 8, 100])
@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("by", BY)
def test_a_support_of_everything_is_the_whole_vocabulary(
    by: str, rest: str, num_entries: int
) -> None:
    support = {"chosen_by": by, "rest": rest, "num_entries": num_entries}
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        student, teacher = random_pair(9, 7)
        plain = value_and_gradient(from_settings({"kind": kind}), student, teacher)
        objective = from_settings({"kind": kind, "support": support})
        torch.testing.assert_close(value_and_gradient(objective, student, teacher), plain)
        torch.testing.assert_close((objective.rows(student, teacher, None), student), plain)


@pytest.mark.parametrize("num_entries", [4, 6])
@pytest.mark.parametrize("rest", REST)
def test_a_union_that_happens_to_be_everything_is_the_whole_vocabulary(
    rest: str, num_entries: int
) -> None:
    student, teacher = random_pair(9, 7)
    teacher[0] = -student[0]
    support = {"chosen_by": "union", "rest": rest, "num_entries": num_entries}
    objective = from_settings({"kind": "reverse_kl", "support": support})
    plain = value_and_gradient(from_settings({"kind": "reverse_kl"}), student[:1], teacher[:1])
    torch.testing.assert_close(value_and_gradient(objective, student[:1], teacher[:1]), plain)
    rows = student[:1].clone()
    torch.testing.assert_close((objective.rows(rows, teacher[:1].clone(), None), rows), plain)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_lumping_entries_together_never_costs_more(kind: str, by: str) -> None:
    student, teacher = random_pair(200, 12)
    whole, _ = value_and_gradient(from_settings({"kind": kind}), student, teacher)
    before = torch.zeros_like(whole)
    for count in (1, 4, 11):
        support = {"chosen_by": by, "num_entries": count}
        objective = from_settings({"kind": kind, "support": support})
        values, _ = value_and_gradient(objective, student, teacher)
        assert (values >= before - 1e-12).all()
        assert (values <= whole + 1e-12).all()
        before = values


@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("by", BY)
def test_classes_of_both_sides_add_up_to_one(by: str, rest: str) -> None:
    support = TopSupport(chosen_by=by, rest=rest, num_entries=3)
    sides = (side.log_softmax(-1) for side in random_pair(9, 8))
    for logp in support.restricted(*sides):
        torch.testing.assert_close(logp.exp().sum(-1), torch.ones(9, dtype=torch.float64))


def test_the_teachers_support_is_what_a_top_k_target_of_it_says() -> None:
    student, teacher = random_pair(9, 8)
    logp, ids = teacher.log_softmax(-1).topk(3)
    target = TopKTarget(ids=ids, logp=logp)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        for rest in REST:
            objective = from_settings({"kind": kind})
            assert isinstance(objective, Divergence)
            stored = top_k_divergence(student, target, objective, rest=rest)
            live = from_settings({"kind": kind, "support": {"num_entries": 3, "rest": rest}})
            torch.testing.assert_close(value_and_gradient(live, student, teacher)[0], stored)


def test_a_support_and_a_top_k_target_are_not_both_obeyed() -> None:
    student, teacher = random_pair(2, 6)
    logp, ids = teacher.log_softmax(-1).topk(3)
    objective = from_settings({"kind": "jsd", "support": {"num_entries": 2}})
    assert isinstance(objective, Divergence)
    with pytest.raises(ConfigError, match=r"objective\.support is given; it must be null"):
        top_k_divergence(student, TopKTarget(ids=ids, logp=logp), objective)


@each(SUPPORTED)
def test_renormalised_leaves_the_rest_alone_and_a_tail_moves_it_as_one(case: Case) -> None:
    student, teacher = random_pair(9, 40)
    _, gradient = value_and_gradient(from_settings(case), student, teacher)
    if case["support"].get("rest") == "renormalised":
        assert (gradient.abs() > 1e-15).sum(-1).max() <= 2 * case["support"]["num_entries"]
        return
    # Outside the support the gradient is proportional to the student's probabilities.
    per_mass = gradient / (student / case.get("temperature", 1.0)).softmax(-1)
    _, counts = per_mass.round(decimals=9).mode(dim=-1)
    same = per_mass.gather(-1, counts[:, None]).isclose(per_mass, rtol=1e-7, atol=1e-10)
    assert same.sum(-1).min() >= 40 - 2 * case["support"]["num_entries"]
