"""Divergences against a mixture of the two distributions: Jensen-Shannon and skewed KL.

Each function takes normalised log-probabilities and returns one number per position, in nats.
"""

from typing import Annotated, Literal, Self, final

import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Float
from pydantic import model_validator
from torch import Tensor
from typing_extensions import override

from tutelage.objectives.divergences.kl import forward_kl, reverse_kl
from tutelage.objectives.objective import Divergence
from tutelage.objectives.softmax import expected


def mixture_logp(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    teacher_share: float,
    power: float = 1.0,
) -> Float[Tensor, "*at V"]:
    """The log of the power mean of two distributions; not normalised unless the power is 1.

        (1 / power) * log(teacher_share * teacher^power + (1 - teacher_share) * student^power)

    Power 1 is the arithmetic mixture, 0 the geometric one (the limit). The larger side is taken
    out first, so that the log is of a number between the smaller share and 1: no underflow, no
    cancellation, and an entry ruled out by one side only has a finite value and gradient. An
    entry ruled out by both is -inf.
    """
    student_leads = student_logp >= teacher_logp
    larger = torch.where(student_leads, student_logp, teacher_logp)
    smaller = torch.where(student_leads, teacher_logp, student_logp)
    share = torch.where(student_leads, teacher_share, 1 - teacher_share).to(larger.dtype)
    nowhere: Bool[Tensor, "*at V"] = larger == -torch.inf
    drop = torch.where(nowhere, 0.0, smaller - larger)
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


@final
class JSD(Divergence):
    """Generalised Jensen-Shannon divergence."""

    kind: Literal["jsd"] = "jsd"

    teacher_share: Annotated[float, Ge(0), Le(1)] = 0.5
    """How much of the mixture is teacher: TRL's `beta`."""

    scaled: bool = False
    """Divide by teacher_share * (1 - teacher_share)."""

    @model_validator(mode="after")
    def _no_silent_zero(self) -> Self:
        if self.teacher_share in (0, 1) and not self.scaled:
            end = "forward_kl" if self.teacher_share == 0 else "reverse_kl"
            raise ValueError(
                f"teacher_share is {self.teacher_share:g}, where this divergence is 0 for every "
                f"student; it must be between 0 and 1. Use kind: {end} (what TRL does there), "
                "or scaled: true."
            )
        return self

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        if self.teacher_share == 0:
            return forward_kl(student_logp, teacher_logp)
        if self.teacher_share == 1:
            return reverse_kl(student_logp, teacher_logp)
        values = jsd(student_logp, teacher_logp, teacher_share=self.teacher_share)
        scale = self.teacher_share * (1 - self.teacher_share)
        return values / scale if self.scaled else values
