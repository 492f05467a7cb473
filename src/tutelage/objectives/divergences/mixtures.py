"""Divergences against a mixture of the two distributions: Jensen-Shannon and skewed KL.

Each function takes normalised log-probabilities and returns one number per position, in nats.
"""

from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Le, Lt
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import row_kernels
from tutelage.objectives.divergences.entrywise import Entrywise
from tutelage.objectives.divergences.kl import (
    forward_kl,
    forward_kl_terms,
    reverse_kl,
    reverse_kl_terms,
)
from tutelage.objectives.objective import Divergence
from tutelage.objectives.softmax import expected, expected_terms

Share = float | Float[Tensor, "*at"]
"""One share for all positions, or one for each."""


def mixture_logp(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    teacher_share: Share,
    power: float = 1.0,
) -> Float[Tensor, "*at V"]:
    """The log of the power mean of two distributions; not normalised unless the power is 1.

        (1 / power) * log(teacher_share * teacher^power + (1 - teacher_share) * student^power)

    Power 1 is the arithmetic mixture, 0 the geometric one (the limit). The larger side is taken
    out first, so that the log is of a number between the smaller share and 1: no underflow, no
    cancellation, and an entry ruled out by one side only has a finite value and gradient. An
    entry ruled out by both is -inf.
    """
    # Made a tensor first: a choice between two Python floats would be one in fp32.
    given = torch.as_tensor(teacher_share, dtype=student_logp.dtype, device=student_logp.device)
    share_of_teacher = given.unsqueeze(-1)
    student_leads = student_logp >= teacher_logp
    larger = torch.where(student_leads, student_logp, teacher_logp)
    smaller = torch.where(student_leads, teacher_logp, student_logp)
    share = torch.where(student_leads, share_of_teacher, 1 - share_of_teacher)
    drop = torch.where(larger == -torch.inf, 0.0, smaller - larger)
    if power == 0:
        return larger + share * drop
    return larger + torch.log1p(share * torch.expm1(power * drop)) / power


def jsd(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    teacher_share: float,
) -> Float[Tensor, "*at"]:
    """Generalised Jensen-Shannon divergence: how far both are from their mixture.

        m = b * teacher + (1 - b) * student;   b * KL(teacher || m) + (1 - b) * KL(student || m)

    with b the teacher's share. Finite whatever is ruled out, and never above log 2. It vanishes at
    both ends for every pair; divided by b * (1 - b) it tends to `forward_kl` as b falls to 0 and
    to `reverse_kl` as b rises to 1.

    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649; Lin 1991.
    """
    mixture = mixture_logp(student_logp, teacher_logp, teacher_share=teacher_share)
    from_teacher = expected(teacher_logp.exp(), teacher_logp - mixture)
    from_student = expected(student_logp.exp(), student_logp - mixture)
    return teacher_share * from_teacher + (1 - teacher_share) * from_student


def jsd_terms(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    teacher_share: float,
) -> Float[Tensor, "*at V"]:
    """What each entry contributes to `jsd`; never negative, unlike the terms of a KL."""
    mixture = mixture_logp(student_logp, teacher_logp, teacher_share=teacher_share)
    from_teacher = expected_terms(teacher_logp.exp(), teacher_logp - mixture)
    from_student = expected_terms(student_logp.exp(), student_logp - mixture)
    return teacher_share * from_teacher + (1 - teacher_share) * from_student


def skew_forward_kl(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    teacher_share: Share,
) -> Float[Tensor, "*at"]:
    """KL(teacher || mixture), the mixture being `teacher_share` teacher and the rest student.

    Never more than -log(teacher_share) nats, whatever the student: the gradient stays bounded
    where `forward_kl` explodes. It is `forward_kl` itself at a share of 0, and 0 at 1.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.
    """
    if not isinstance(teacher_share, Tensor) and teacher_share == 0:
        return forward_kl(student_logp, teacher_logp)
    mixture = mixture_logp(student_logp, teacher_logp, teacher_share=teacher_share)
    return expected(teacher_logp.exp(), teacher_logp - mixture)


def skew_reverse_kl(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    student_share: Share,
    detach_mixture: bool = False,
) -> Float[Tensor, "*at"]:
    """KL(student || mixture), the mixture being `student_share` student and the rest teacher.

    Never more than -log(student_share) nats, so a token that the teacher rules out costs a finite
    amount. It is `reverse_kl` itself at a share of 0, and 0 at 1.

    Args:
        detach_mixture: take the student inside the mixture as a constant, as DistiLLM-2's code
            does: the same value with a larger gradient.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.
    """
    if not isinstance(student_share, Tensor) and student_share == 0:
        return reverse_kl(student_logp, teacher_logp)
    mixture = mixture_logp(
        student_logp.detach() if detach_mixture else student_logp,
        teacher_logp,
        teacher_share=1 - student_share,
    )
    return expected(student_logp.exp(), student_logp - mixture)


@final
class JSD(Entrywise):
    """Generalised Jensen-Shannon divergence: bounded, between the two directions of KL.

    Unscaled it fades to 0 at both ends of `teacher_share`, where TRL and Liger jump to unscaled
    forward and reverse KL; here the ends are refused. Scaled it *is* those two at the ends, and
    continuous between them.

    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649.
    """

    kind: Literal["jsd"] = "jsd"

    teacher_share: Annotated[float, Ge(0), Le(1)] = 0.5
    """How much of the mixture is teacher: beta in GKD, TRL and Liger, 1 - lam in DistiLLM. Towards
    0 it behaves like forward KL, towards 1 like reverse KL."""

    scaled: bool = False
    """Divide by teacher_share * (1 - teacher_share), so that both ends may be used. In fp32 the
    value keeps about 1e-7 / share relative digits near an end: take the end itself there."""

    @model_validator(mode="after")
    def _no_silent_zero(self) -> "JSD":
        if self.teacher_share in (0, 1) and not self.scaled:
            end = "forward_kl" if self.teacher_share == 0 else "reverse_kl"
            raise ValueError(
                f"teacher_share is {self.teacher_share:g}, where this divergence is 0 for every "
                f"student; it must be between 0 and 1. Use kind: {end} (what TRL does there), "
                "or scaled: true."
            )
        return self

    @property
    def _scale(self) -> float:
        inside = 0 < self.teacher_share < 1
        return (
            1 / (self.teacher_share * (1 - self.teacher_share)) if self.scaled and inside else 1.0
        )

    @override
    def terms(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at V"]:
        if self.teacher_share == 0:
            return forward_kl_terms(student_logp, teacher_logp)
        if self.teacher_share == 1:
            return reverse_kl_terms(student_logp, teacher_logp)
        return self._scale * jsd_terms(student_logp, teacher_logp, teacher_share=self.teacher_share)

    @override
    def whole(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        if self.teacher_share == 0:
            return forward_kl(student_logp, teacher_logp)
        if self.teacher_share == 1:
            return reverse_kl(student_logp, teacher_logp)
        return self._scale * jsd(student_logp, teacher_logp, teacher_share=self.teacher_share)

    @override
    def whole_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        if self.teacher_share == 0:
            return row_kernels.forward_kl_rows(student_scores, teacher_scores)
        if self.teacher_share == 1:
            return row_kernels.reverse_kl_rows(student_scores, teacher_scores)
        return row_kernels.jsd_rows(
            student_scores, teacher_scores, teacher_share=self.teacher_share, scale=self._scale
        )

    @override
    def pointwise_rows(
        self,
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
        threshold: float,
    ) -> Float[Tensor, " R"]:
        sides = student_scores, teacher_scores
        if self.teacher_share == 0:
            return row_kernels.forward_kl_pointwise_rows(*sides, threshold=threshold)
        if self.teacher_share == 1:
            return row_kernels.reverse_kl_pointwise_rows(*sides, threshold=threshold)
        return row_kernels.jsd_pointwise_rows(
            *sides, teacher_share=self.teacher_share, threshold=threshold, scale=self._scale
        )


@final
class SkewForwardKL(Divergence):
    """Forward KL to a student that is softened with some of the teacher.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.
    """

    kind: Literal["skew_forward_kl"] = "skew_forward_kl"

    teacher_share: Annotated[float, Ge(0), Lt(1)] = 0.1
    """How much of the mixture is teacher (alpha in the paper). 0 is plain forward KL; at 1 the
    mixture is the teacher itself and nothing would be learned."""

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return skew_forward_kl(student_logp, teacher_logp, teacher_share=self.teacher_share)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        if self.teacher_share == 0:
            return row_kernels.forward_kl_rows(student_scores, teacher_scores)
        return row_kernels.skew_forward_kl_rows(
            student_scores, teacher_scores, teacher_share=self.teacher_share
        )


@final
class SkewReverseKL(Divergence):
    """Reverse KL to a teacher that is softened with some of the student.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.
    """

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"

    student_share: Annotated[float, Ge(0), Lt(1)] = 0.1
    """How much of the mixture is student (alpha in the paper). 0 is plain reverse KL; at 1 the
    mixture is the student itself and nothing would be learned."""

    detach_mixture: bool = False
    """Take the student inside the mixture as a constant, as DistiLLM-2's code does. The value is
    the same; the gradient is larger."""

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return skew_reverse_kl(
            student_logp,
            teacher_logp,
            student_share=self.student_share,
            detach_mixture=self.detach_mixture,
        )

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        if self.student_share == 0:
            return row_kernels.reverse_kl_rows(student_scores, teacher_scores)
        return row_kernels.skew_reverse_kl_rows(
            student_scores,
            teacher_scores,
            student_share=self.student_share,
            detach_mixture=self.detach_mixture,
        )
