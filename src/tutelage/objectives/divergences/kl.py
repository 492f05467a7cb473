"""Kullback-Leibler divergence in both directions, and fixed weights between them.

Each function takes normalised log-probabilities and returns one number per position, in nats.
Nothing here masks, averages or applies a temperature.
"""

from typing import Annotated, Literal, final

from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import row_kernels
from tutelage.objectives.divergences.entrywise import Entrywise
from tutelage.objectives.objective import Divergence
from tutelage.objectives.softmax import expected, expected_terms


def forward_kl_terms(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at V"]:
    """What each entry contributes to `forward_kl`: teacher(v) * (log teacher - log student)."""
    return expected_terms(teacher_logp.exp(), teacher_logp - student_logp)


def reverse_kl_terms(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at V"]:
    """What each entry contributes to `reverse_kl`: student(v) * (log student - log teacher)."""
    return expected_terms(student_logp.exp(), student_logp - teacher_logp)


def forward_kl(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at"]:
    """KL(teacher || student): make the student cover all that the teacher might say.

        sum_v teacher(v) * (log teacher(v) - log student(v))

    A token the teacher rules out (-inf) costs nothing. One that only the student rules out
    costs infinity; that is the true value, so it is not clamped.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.
    """
    return expected(teacher_logp.exp(), teacher_logp - student_logp)


def reverse_kl(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at"]:
    """KL(student || teacher): keep the student from saying what the teacher would not.

        sum_v student(v) * (log student(v) - log teacher(v))

    A token the student rules out (-inf) costs nothing and is never learned. One that only the
    teacher rules out costs infinity; that is the true value, so it is not clamped.

    Source: Gu et al. 2024 (MiniLLM), arXiv:2306.08543.
    """
    return expected(student_logp.exp(), student_logp - teacher_logp)


def symmetric_kl(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    reverse_weight: float,
) -> Float[Tensor, "*at"]:
    """(1 - reverse_weight) * forward_kl + reverse_weight * reverse_kl.

    At 0 it is `forward_kl` and at 1 `reverse_kl`: an end is not spoilt by the other's infinity.
    """
    if reverse_weight == 0:
        return forward_kl(student_logp, teacher_logp)
    if reverse_weight == 1:
        return reverse_kl(student_logp, teacher_logp)
    return (1 - reverse_weight) * forward_kl(student_logp, teacher_logp) + (
        reverse_weight * reverse_kl(student_logp, teacher_logp)
    )


def jeffreys(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at"]:
    """forward_kl + reverse_kl, that is sum_v (teacher(v) - student(v)) * their log-ratio.

    Source: Jeffreys 1946, "An invariant form for the prior probability".
    """
    return forward_kl(student_logp, teacher_logp) + reverse_kl(student_logp, teacher_logp)


@final
class ForwardKL(Entrywise):
    """KL(teacher || student): cover all that the teacher might say."""

    kind: Literal["forward_kl"] = "forward_kl"

    @override
    def terms(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at V"]:
        return forward_kl_terms(student_logp, teacher_logp)

    @override
    def whole(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return forward_kl(student_logp, teacher_logp)

    @override
    def whole_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.forward_kl_rows(student_scores, teacher_scores)

    @override
    def pointwise_rows(
        self,
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
        threshold: float,
    ) -> Float[Tensor, " R"]:
        return row_kernels.forward_kl_pointwise_rows(
            student_scores, teacher_scores, threshold=threshold
        )


@final
class ReverseKL(Entrywise):
    """KL(student || teacher): avoid what the teacher would not say."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    @override
    def terms(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at V"]:
        return reverse_kl_terms(student_logp, teacher_logp)

    @override
    def whole(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return reverse_kl(student_logp, teacher_logp)

    @override
    def whole_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.reverse_kl_rows(student_scores, teacher_scores)

    @override
    def pointwise_rows(
        self,
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
        threshold: float,
    ) -> Float[Tensor, " R"]:
        return row_kernels.reverse_kl_pointwise_rows(
            student_scores, teacher_scores, threshold=threshold
        )


@final
class Jeffreys(Divergence):
    """The sum of both Kullback-Leibler directions."""

    kind: Literal["jeffreys"] = "jeffreys"

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return jeffreys(student_logp, teacher_logp)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.symmetric_kl_rows(
            student_scores, teacher_scores, forward_weight=1.0, reverse_weight=1.0
        )


@final
class SymmetricKL(Divergence):
    """A weighted mean of both Kullback-Leibler directions.

    Source: DistiLLM's code and the CSD paper (arXiv:2509.25837) use 0.9; torchtune 0.5.
    """

    kind: Literal["symmetric_kl"] = "symmetric_kl"

    reverse_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    """The share of reverse KL. 0 is plain forward KL, 1 plain reverse KL."""

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return symmetric_kl(student_logp, teacher_logp, reverse_weight=self.reverse_weight)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.symmetric_kl_rows(
            student_scores,
            teacher_scores,
            forward_weight=1 - self.reverse_weight,
            reverse_weight=self.reverse_weight,
        )
