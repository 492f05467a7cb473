"""Concrete score distillation: a weighted variance of the difference between two models' scores.

Values are half the paper's (as in its official code), so that weights of (student, student) give
the gradient of reverse KL itself. Weights never carry a gradient.
"""

from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.objectives import row_kernels
from tutelage.objectives.objective import Objective
from tutelage.objectives.softmax import log_softmax_at, upcast

Weight = Literal["student", "teacher", "uniform"]

_FEWEST_DRAWS = 2


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

    with W the sum of a weight. Adding a constant to either model's scores changes nothing. An
    entry of no weight counts for nothing, even at -inf. The weights are taken as constants.

    Source: Kim et al. 2025 (CSD), arXiv:2509.25837, equation 8.
    """
    first, first_total = _normalised(first_weight)
    second, second_total = _normalised(second_weight)
    gap = torch.where(first + second > 0, upcast(student_logits) - upcast(teacher_logits), 0.0)
    first_mean = (first * gap).sum(dim=-1, keepdim=True)
    second_mean = (second * gap).sum(dim=-1, keepdim=True)
    spread = (first * (gap - first_mean).square()).sum(dim=-1) + (
        second * (gap - second_mean).square()
    ).sum(dim=-1)
    between = (first_mean - second_mean).squeeze(-1).square()
    return (spread + between) * (first_total * second_total / 4)


def joint_concrete_score(
    student_logits: Float[Tensor, "*at V"],
    teacher_logits: Float[Tensor, "*at V"],
    anchor_ids: Int[Tensor, "*at"],
    weight_given_anchor: Float[Tensor, "*at V"],
) -> Float[Tensor, "*at"]:
    """The same for weights that do not factorise, by one drawn token for each position.

        1/4 * sum_x weight(x | y) * (d(x) - d(y))^2,   y drawn from the first weight

    Value and gradient have the right mean over y, and more noise than `concrete_score`.

    Args:
        anchor_ids: the drawn y.
        weight_given_anchor: the second weight at that y, a constant.

    Source: Kim et al. 2025 (CSD), arXiv:2509.25837, algorithm 2.
    """
    weight = upcast(weight_given_anchor.detach())
    gap = upcast(student_logits) - upcast(teacher_logits)
    anchor = gap.gather(-1, anchor_ids.long().unsqueeze(-1))
    return (weight * torch.where(weight > 0, gap - anchor, 0.0).square()).sum(dim=-1) / 4


def sampled_concrete_score(
    student_logp: Float[Tensor, "*at S"], teacher_logp: Float[Tensor, "*at S"]
) -> Float[Tensor, "*at"]:
    """The (student, student) loss from S tokens that the student drew at each position.

    Half the unbiased variance of the log-ratio over the draws. Its gradient has the mean of that
    of reverse KL.

    Args:
        student_logp: of the drawn tokens, with gradient; S must be 2 or more.
        teacher_logp: of the same tokens.

    Source: Richter et al. 2020 (VarGrad), arXiv:2010.10436.
    """
    if student_logp.shape[-1] < _FEWEST_DRAWS:
        raise DataError(
            f"sampled_concrete_score has {student_logp.shape[-1]} token for each position; it "
            "must have 2 or more, for a variance. Draw more tokens."
        )
    gap = upcast(student_logp) - upcast(teacher_logp.detach())
    return gap.var(dim=-1, correction=1) / 2


def _normalised(
    weight: Float[Tensor, "*at V"],
) -> tuple[Float[Tensor, "*at V"], Float[Tensor, "*at"]]:
    held = upcast(weight.detach())
    total = held.sum(dim=-1, keepdim=True)
    return held / total, total.squeeze(-1)


@final
class ConcreteScore(Objective):
    """Match all pairwise differences of the teacher's scores.

    With weights (student, student), the paper's default, the gradient is exactly that of reverse
    KL, and with a weight temperature T that of T^2 * KL at T. (teacher, student) behaves like
    forward KL with a longer step. There is no temperature for the differences themselves.

    An entry that either side rules out is left out on both: the loss is that of the rest.

    Source: Kim et al. 2025 (CSD), arXiv:2509.25837.
    """

    kind: Literal["concrete_score"] = "concrete_score"

    weights: tuple[Weight, Weight] | None = None
    """Whose probabilities weigh the two tokens of a pair, as constants; `uniform` is 1 / V. The
    order does not matter. Without it and without `mixture`: student, student."""

    mixture: Annotated[float, Ge(0), Le(1)] | None = None
    """Weigh both tokens by this much teacher and the rest student (alpha in the paper's code).
    0 is weights of (student, student), 1 (teacher, teacher)."""

    weight_temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the logits inside student and teacher weights; the differences are never divided
    and nothing is multiplied by its square."""

    @model_validator(mode="after")
    def _one_kind_of_weights(self) -> "ConcreteScore":
        if self.mixture is not None and self.weights is not None:
            raise ValueError(
                "mixture and weights are both given; it must be one of them. "
                "Leave out weights to weigh both tokens by the mixture."
            )
        if self.weights == ("uniform", "uniform") and self.weight_temperature != 1:
            raise ValueError(
                f"weight_temperature is {self.weight_temperature:g} and the weights are uniform, "
                "which have no temperature; it must be 1. Leave it out."
            )
        return self

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """The loss in squared nats; labels play no part."""
        ruled_out = (student_logits == -torch.inf) | (teacher_logits == -torch.inf)
        student = upcast(student_logits).masked_fill(ruled_out, -torch.inf)
        teacher = upcast(teacher_logits).masked_fill(ruled_out, -torch.inf)
        first, second = self._weights(student.detach(), teacher.detach())
        # Log-probabilities differ from scores by a constant, and lose no digits to an offset.
        return concrete_score(
            student.log_softmax(dim=-1), teacher.log_softmax(dim=-1), first, second
        )

    @override
    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows in place: two weighted means of the differences."""
        if not row_kernels.all_finite(student_logits, teacher_logits):
            return super().rows(student_logits, teacher_logits, labels)
        if self.mixture is not None:
            return row_kernels.mixture_concrete_score_rows(
                student_logits,
                teacher_logits,
                teacher_share=self.mixture,
                weight_temperature=self.weight_temperature,
            )
        return row_kernels.concrete_score_rows(
            student_logits,
            teacher_logits,
            weights=self.weights or ("student", "student"),
            weight_temperature=self.weight_temperature,
        )

    def _weights(
        self, student: Float[Tensor, "*at V"], teacher: Float[Tensor, "*at V"]
    ) -> tuple[Float[Tensor, "*at V"], Float[Tensor, "*at V"]]:
        def weight(whose: Weight) -> Float[Tensor, "*at V"]:
            if whose == "uniform":
                return torch.where(student > -torch.inf, 0.0, student).softmax(dim=-1)
            scores = student if whose == "student" else teacher
            return log_softmax_at(scores, self.weight_temperature).exp()

        if self.mixture is not None:
            mixed = torch.lerp(weight("student"), weight("teacher"), self.mixture)
            return mixed, mixed
        first, second = self.weights or ("student", "student")
        return weight(first), weight(second)
