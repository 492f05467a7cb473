"""Concrete score distillation: a weighted variance of the difference between two models' scores.

Values are half the paper's (as in its official code), so that weights of (student, student) give
the gradient of reverse KL itself. Weights never carry a gradient.
"""

from typing import Annotated, Literal, Self, final

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor
from typing_extensions import override

from tutelage.objectives.objective import Objective
from tutelage.objectives.softmax import log_softmax_at, upcast

Weight = Literal["student", "teacher", "uniform"]


def concrete_score(
    student_logits: Float[Tensor, "*at V"],
    teacher_logits: Float[Tensor, "*at V"],
    first_weight: Float[Tensor, "*at V"],
    second_weight: Float[Tensor, "*at V"],
) -> Float[Tensor, "*at"]:
    """Half the paper's loss, for any non-negative weights, normalised or not.

        d = student_logits - teacher_logits
        1/4 * sum_y sum_x first(y) * second(x) * (d(x) - d(y))^2
      = 1/4 * W1 * W2 * (Var_1(d) + Var_2(d) + (mean_1(d) - mean_2(d))^2)

    with W the sum of a weight. Adding a constant to either model's scores changes nothing. The
    weights are taken as constants.

    Source: Kim et al. 2025 (CSD), arXiv:2509.25837, equation 8.
    """
    gap = upcast(student_logits) - upcast(teacher_logits)
    first, first_total = _normalised(first_weight)
    second, second_total = _normalised(second_weight)
    first_mean = (first * gap).sum(dim=-1, keepdim=True)
    second_mean = (second * gap).sum(dim=-1, keepdim=True)
    spread = (first * (gap - first_mean).square()).sum(dim=-1) + (
        second * (gap - second_mean).square()
    ).sum(dim=-1)
    between = (first_mean - second_mean).squeeze(-1).square()
    return (spread + between) * (first_total * second_total / 4)


def _normalised(
    weight: Float[Tensor, "*at V"],
) -> tuple[Float[Tensor, "*at V"], Float[Tensor, "*at"]]:
    held = upcast(weight.detach())
    total = held.sum(dim=-1, keepdim=True)
    return held / total, total.squeeze(-1)


@final
class ConcreteScore(Objective):
    """Match all pairwise differences of the teacher's scores.

    Source: Kim et al. 2025 (CSD), arXiv:2509.25837.
    """

    kind: Literal["concrete_score"] = "concrete_score"

    weights: tuple[Weight, Weight] | None = None
    """Whose probabilities weigh the two tokens of a pair; their order does not matter."""

    mixture: Annotated[float, Ge(0), Le(1)] | None = None
    """Weigh both tokens by this much teacher and the rest student."""

    weight_temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the logits inside student and teacher weights; the differences are never divided."""

    @model_validator(mode="after")
    def _one_kind_of_weights(self) -> Self:
        if self.mixture is not None and self.weights is not None:
            raise ValueError(
                "mixture and weights are both given; it must be one of them. "
                "Leave out weights to weigh both tokens by the mixture."
            )
        return self

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        ruled_out = (student_logits == -torch.inf) | (teacher_logits == -torch.inf)
        student = upcast(student_logits).masked_fill(ruled_out, -torch.inf)
        teacher = upcast(teacher_logits).masked_fill(ruled_out, -torch.inf)
        first, second = self._weights(student.detach(), teacher.detach())
        return concrete_score(
            student.log_softmax(dim=-1).masked_fill(ruled_out, 0.0),
            teacher.log_softmax(dim=-1).masked_fill(ruled_out, 0.0),
            first,
            second,
        )

    def _weights(
        self, student: Float[Tensor, "*at V"], teacher: Float[Tensor, "*at V"]
    ) -> tuple[Float[Tensor, "*at V"], Float[Tensor, "*at V"]]:
        def weight(whose: Weight) -> Float[Tensor, "*at V"]:
            if whose == "uniform":
                allowed = (student > -torch.inf).to(student.dtype)
                return allowed / allowed.sum(dim=-1, keepdim=True)
            scores = student if whose == "student" else teacher
            return log_softmax_at(scores, self.weight_temperature).exp()

        if self.mixture is not None:
            mixed = torch.lerp(weight("student"), weight("teacher"), self.mixture)
            return mixed, mixed
        first, second = self.weights or ("student", "student")
        return weight(first), weight(second)
