"""Top-k and sampled targets: the tail bucket is safe, the others are what they are."""

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.kinds import DIVERGENCES, Case, each
from tests.objectives.pairs import random_pair, row
from tutelage.core.errors import ConfigError
from tutelage.core.targets import SampledTarget, TopKTarget
from tutelage.objectives import Divergence, from_settings, sampled_cross_entropy, top_k_divergence
from tutelage.objectives.divergences import ForwardKL, ReverseKL

AT_ONE = [case for case in DIVERGENCES if case.get("temperature", 1.0) == 1.0]


def kept(teacher: Tensor, k: int) -> TopKTarget:
    logp, ids = teacher.log_softmax(-1).topk(k)
    return TopKTarget(ids=ids, logp=logp)


def gradient_of(values: Tensor, scores: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), scores)[0]


def objective_of(case: Case) -> Divergence:
    objective = from_settings(case)
    assert isinstance(objective, Divergence)
    return objective


@pytest.mark.parametrize("k", [1, 3, 7])
@each(AT_ONE)
def test_with_a_tail_bucket_every_divergence_is_that_of_the_lumped_distributions(
    case: Case, k: int
) -> None:
    student, teacher = random_pair(10, 8)
    order = teacher.argsort(-1, descending=True)

    def lumped(scores: Tensor) -> Tensor:
        p = scores.softmax(-1).gather(-1, order)
        return torch.cat([p[:, :k], p[:, k:].sum(-1, keepdim=True)], dim=-1).log()

    found = top_k_divergence(student, kept(teacher, k), objective_of(case))
    by_hand = objective_of(case).divergence(lumped(student), lumped(teacher))
    torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("objective", [ForwardKL(), ReverseKL()], ids=lambda o: o.kind)
def test_a_tail_bucket_never_costs_more_than_the_whole_vocabulary(objective: Divergence) -> None:
    student, teacher = random_pair(200, 12)
    whole = objective.from_logits(student, teacher)
    for k in (1, 4, 11):
        bucketed = top_k_divergence(student, kept(teacher, k), objective)
        assert (bucketed >= -1e-12).all()
        assert (bucketed <= whole + 1e-12).all()


def test_truncation_goes_negative_where_the_bucket_keeps_its_value_and_gradient() -> None:
    teacher, student = row([1.0, 0.0, 0.0, 0.0]), row([3.0, 0.0, 0.0, 0.0]).requires_grad_()
    truncated = top_k_divergence(student, kept(teacher, 1), ForwardKL(), rest="truncated")
    bucketed = top_k_divergence(student, kept(teacher, 1), ForwardKL())
    assert truncated.item() < 0 < bucketed.item()
    assert gradient_of(bucketed, student).abs().max() > 0.1


def test_a_truncated_optimum_is_too_sure_of_itself() -> None:
    student, teacher = random_pair(1, 6)
    target, scores = kept(teacher, 2), student.requires_grad_()
    values = top_k_divergence(scores, target, ForwardKL(), rest="truncated")
    p = torch.zeros_like(teacher).scatter(-1, target.ids, target.logp.exp())
    mass = p.sum(-1, keepdim=True)
    formula = mass * scores.detach().softmax(-1) - p
    torch.testing.assert_close(gradient_of(values, scores), formula)


def test_leaving_the_kept_tokens_never_pays_with_a_bucket_and_does_without() -> None:
    teacher = row([2.0, 1.5, 0.0, 0.0, 0.0])
    target = kept(teacher, 2)
    # More and more of the student's mass goes to a token the teacher did not keep.
    away = torch.arange(0.0, 8.0, 0.5)
    student = torch.zeros(len(away), 5).double() + teacher
    student[:, 4] += away
    many = TopKTarget(ids=target.ids.expand(len(away), 2), logp=target.logp.expand(len(away), 2))

    bucketed = top_k_divergence(student, many, ReverseKL())
    truncated = top_k_divergence(student, many, ReverseKL(), rest="truncated")

    assert (bucketed.diff() > 0).all()
    assert truncated[-1] < truncated[0]


def test_renormalised_does_not_see_mass_outside_the_kept_tokens() -> None:
    student, teacher = random_pair(5, 8)
    scores, target = student.requires_grad_(), kept(teacher, 3)
    values = top_k_divergence(scores, target, ForwardKL(), rest="renormalised")
    gradient = gradient_of(values, scores)
    inside = gradient.gather(-1, target.ids)
    assert inside.sum(-1).abs().max() < 1e-12
    torch.testing.assert_close(inside.abs().sum(-1), gradient.abs().sum(-1))
    torch.testing.assert_close(
        values,
        ForwardKL().from_logits(student.gather(-1, target.ids), teacher.gather(-1, target.ids)),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_student_that_equals_its_teacher_has_no_loss_at_temperature_one(
    dtype: torch.dtype,
) -> None:
    teacher = random_pair(20, 50, dtype=dtype)[1]
    logp, ids = teacher.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1).topk(8)
    scores = teacher.clone().requires_grad_()
    for objective in (ForwardKL(), ReverseKL(), from_settings({"kind": "jsd"})):
        assert isinstance(objective, Divergence)
        values = top_k_divergence(scores, TopKTarget(ids=ids, logp=logp), objective)
        assert values.abs().max() <= 1e-6
        assert gradient_of(values, scores).abs().max() <= 1e-6


def test_a_temperature_that_kept_entries_cannot_express_is_refused_with_the_reason() -> None:
    student, teacher = random_pair(2, 6)
    with pytest.raises(ConfigError, match=r"temperature is 2; it must be 1 for a top-k target"):
        top_k_divergence(student, kept(teacher, 2), ForwardKL(temperature=2.0))


def test_a_target_that_kept_everything_is_the_whole_divergence() -> None:
    student, teacher = random_pair(4, 6)
    scores = student.requires_grad_()
    target = kept(teacher, 6)
    values = top_k_divergence(scores, target, ForwardKL())
    torch.testing.assert_close(values, ForwardKL().from_logits(scores, teacher))
    gradient = gradient_of(values, scores)
    torch.testing.assert_close(gradient, scores.detach().softmax(-1) - teacher.softmax(-1))


def test_kept_mass_that_rounds_to_more_than_one_leaves_no_tail() -> None:
    student = torch.randn(1, 4).requires_grad_()
    target = TopKTarget(
        ids=torch.tensor([[0, 1]]), logp=torch.tensor([[math.log(0.7), math.log(0.3) + 3e-7]])
    )
    values = top_k_divergence(student, target, ForwardKL())
    assert values.isfinite().all()
    assert gradient_of(values, student).isfinite().all()


def test_sampled_ids_give_the_gradient_of_forward_kl_on_average() -> None:
    # Exactly, over all pairs of draws with replacement.
    student, teacher = random_pair(1, 4)
    p = teacher.softmax(-1)[0]
    draws = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    scores = student.clone().requires_grad_()
    target = SampledTarget(ids=draws, weights=torch.full((16, 2), 0.5))
    values = sampled_cross_entropy(scores.expand(16, 4), target)
    gradient = gradient_of(values * p[draws].prod(-1), scores)

    torch.testing.assert_close(gradient, student.softmax(-1) - p)
    entropy = -(p * p.log()).sum()
    mean = (values * p[draws].prod(-1)).sum()
    torch.testing.assert_close(
        mean.detach(), ForwardKL().from_logits(student, teacher)[0] + entropy
    )


def test_a_drawn_id_of_no_weight_does_not_count_even_where_it_is_ruled_out() -> None:
    scores = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    target = SampledTarget(ids=torch.tensor([[0, 2]]), weights=torch.tensor([[1.0, 0.0]]))
    values = sampled_cross_entropy(scores, target)
    assert values.isfinite().all()
    assert gradient_of(values, scores).isfinite().all()
