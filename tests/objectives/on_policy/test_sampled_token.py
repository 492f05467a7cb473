"""One drawn token says what reverse KL says, on average; and what it costs to draw it otherwise."""

import pytest
import torch

from tests.objectives.pairs import Pair, random_pair, value_and_gradient
from tutelage.core.errors import DataError
from tutelage.objectives import Objective, Taid, from_settings, is_learning_rate_ramp
from tutelage.recipes.check import only_a_ramp


def every_draw(student: torch.Tensor, teacher: torch.Tensor) -> tuple[Pair, torch.Tensor]:
    """One row of scores for each token that could be drawn, and those tokens."""
    size = student.shape[-1]
    return (student.expand(size, size), teacher.expand(size, size)), torch.arange(size)


def by_kernel(objective: Objective, pair: Pair, labels: torch.Tensor) -> Pair:
    rows = pair[0].clone()
    return objective.rows(rows, pair[1].clone(), labels), rows


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_its_mean_over_the_students_draws_is_reverse_kl_value_and_gradient(
    temperature: float,
) -> None:
    student, teacher = random_pair(1, 7)
    drawn, labels = every_draw(student, teacher)
    q = (student[0] / temperature).softmax(-1)
    objective = from_settings({"kind": "sampled_token", "temperature": temperature})
    whole = from_settings({"kind": "reverse_kl", "temperature": temperature})
    value, gradient = value_and_gradient(whole, student, teacher)
    for values, gradients in (
        value_and_gradient(objective, *drawn, labels),
        by_kernel(objective, drawn, labels),
    ):
        torch.testing.assert_close((q * values).sum(), value[0])
        torch.testing.assert_close((q[:, None] * gradients).sum(0), gradient[0])


def test_many_draws_come_near_it() -> None:
    student, teacher = random_pair(1, 5)
    generator = torch.Generator().manual_seed(0)
    count = 200_000
    labels = torch.multinomial(student[0].softmax(-1), count, replacement=True, generator=generator)
    pair = (student.expand(count, 5), teacher.expand(count, 5))
    values, gradients = by_kernel(from_settings({"kind": "sampled_token"}), pair, labels)
    value, gradient = value_and_gradient(from_settings({"kind": "reverse_kl"}), student, teacher)
    error = values.std() / count**0.5
    assert abs(values.mean() - value[0]) < 4 * error
    torch.testing.assert_close(gradients.mean(0), gradient[0], atol=0.02, rtol=0)


def test_draws_from_the_likeliest_tokens_only_are_biased() -> None:
    student, teacher = random_pair(1, 7)
    drawn, labels = every_draw(student, teacher)
    q = student[0].softmax(-1)
    top = torch.zeros(7).double().scatter(0, student[0].topk(3).indices, 1.0) * q
    top /= top.sum()
    values, gradients = value_and_gradient(from_settings({"kind": "sampled_token"}), *drawn, labels)
    value, gradient = value_and_gradient(from_settings({"kind": "reverse_kl"}), student, teacher)
    assert abs((top * values).sum() - value[0]) > 0.01
    assert ((top[:, None] * gradients).sum(0) - gradient[0]).abs().max() > 0.01


def test_the_gradient_is_the_slope_of_half_the_squared_value() -> None:
    student, teacher = random_pair(6, 5)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    student.requires_grad_()

    def half_square(scores: torch.Tensor) -> torch.Tensor:
        gap = scores.log_softmax(-1) - teacher.log_softmax(-1)
        return gap.gather(-1, labels[:, None])[:, 0].square() / 2

    assert torch.autograd.gradcheck(half_square, student, check_batched_grad=False)
    (slope,) = torch.autograd.grad(half_square(student).sum(), student)
    objective = from_settings({"kind": "sampled_token"})
    values, gradient = value_and_gradient(objective, student, teacher, labels)
    torch.testing.assert_close(gradient, slope)
    torch.testing.assert_close(by_kernel(objective, (student.detach(), teacher), labels)[1], slope)
    torch.testing.assert_close(values.square() / 2, half_square(student).detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equal_sides_have_no_value_and_no_gradient(dtype: torch.dtype) -> None:
    student, _ = random_pair(5, 40, dtype=dtype)
    values, gradient = value_and_gradient(
        from_settings({"kind": "sampled_token"}), student, student.clone(), torch.arange(5)
    )
    assert not values.any()
    assert not gradient.any()


def test_without_the_completions_ids_it_says_what_it_needs() -> None:
    objective = from_settings({"kind": "sampled_token"})
    with pytest.raises(DataError, match=r"without token ids; it must carry the completion's own"):
        value_and_gradient(objective, *random_pair(2, 5))
    with pytest.raises(DataError, match=r"label is 5; it must be a token id from 0 to 4"):
        value_and_gradient(objective, *random_pair(2, 5), torch.tensor([1, 5]))


def test_with_a_target_mixed_from_the_student_it_is_a_ramp_like_reverse_kl() -> None:
    sampled = from_settings({"kind": "sampled_token", "temperature": 1.3})
    forward = from_settings({"kind": "forward_kl"})
    for objective, ramp in ((sampled, True), (forward, False)):
        parts = [{"weight": 0.5, "objective": objective.model_dump()}]
        both = from_settings({"kind": "weighted_sum", "parts": parts})
        for one in (objective, both):
            assert is_learning_rate_ramp(Taid(), one) is ramp
            assert only_a_ramp(one) is ramp
