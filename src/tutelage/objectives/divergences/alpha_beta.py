"""The alpha-beta divergence: a plane of divergences with both directions of KL in it."""

from typing import Annotated, Literal, final

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import row_kernels
from tutelage.objectives.objective import Divergence
from tutelage.objectives.softmax import expected


def alpha_beta(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    alpha: float,
    beta: float,
) -> Float[Tensor, "*at"]:
    """The alpha-beta divergence, with p the teacher, q the student and s = alpha + beta.

        -1 / (alpha * beta) * sum_v (p^alpha q^beta - alpha/s p^s - beta/s q^s)

    (1, 0) is forward KL, (0, 1) reverse KL, (1, 1) half the squared L2 distance, (0.5, 0.5) twice
    the squared Hellinger sum, (0, 0) half the squared L2 distance of log-probabilities. Both
    settings must be 0 or more. Each term is written so that it is never negative and nothing
    cancels. Finite whatever is ruled out when both are above 0.

    Source: Cichocki, Cruces and Amari 2011; Wang et al. 2025 (ABKD), arXiv:2505.04560.
    """
    if alpha == 0 and beta == 0:
        return _squared_log_ratio(student_logp, teacher_logp)
    if alpha == 0:
        return _powers_kl(student_logp, teacher_logp, beta)
    if beta == 0:
        return _powers_kl(teacher_logp, student_logp, alpha)
    # With u = log p - log q and the larger of both powers taken out, the other factor is
    # share * expm1(-s|u|) - expm1(-part * |u|), which is 0 at u = 0 and never negative.
    s = alpha + beta
    student_leads = student_logp >= teacher_logp
    larger = torch.where(student_leads, student_logp, teacher_logp)
    smaller = torch.where(student_leads, teacher_logp, student_logp)
    drop = torch.where(larger == -torch.inf, 0.0, smaller - larger)
    part = torch.where(student_leads, larger.new_tensor(alpha), larger.new_tensor(beta))
    rise = torch.expm1(s * drop) * (part / s) - torch.expm1(part * drop)
    return ((s * larger).exp() * rise).sum(dim=-1) / (alpha * beta)


def _powers_kl(
    a_logp: Float[Tensor, "*at V"], b_logp: Float[Tensor, "*at V"], power: float
) -> Float[Tensor, "*at"]:
    """The limits on the axes: sum_v (a' log(a'/b') - a' + b') / power^2 with a' = a^power."""
    a, b = (power * a_logp).exp(), (power * b_logp).exp()
    return (expected(a, power * (a_logp - b_logp)) + (b - a).sum(dim=-1)) / power**2


def _squared_log_ratio(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at"]:
    both_out = (student_logp == -torch.inf) & (teacher_logp == -torch.inf)
    return torch.where(both_out, 0.0, student_logp - teacher_logp).square().sum(dim=-1) / 2


@final
class AlphaBeta(Divergence):
    """The alpha-beta divergence.

    Source: Wang et al. 2025 (ABKD), arXiv:2505.04560.
    """

    kind: Literal["alpha_beta"] = "alpha_beta"

    alpha: Annotated[float, Ge(0)] = 0.2
    """Power of the teacher's side. Larger weighs tokens by how likely the teacher finds them."""

    beta: Annotated[float, Ge(0)] = 0.7
    """Power of the student's side. Larger weighs tokens by how likely the student finds them."""

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return alpha_beta(student_logp, teacher_logp, alpha=self.alpha, beta=self.beta)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.alpha_beta_rows(
            student_scores, teacher_scores, alpha=self.alpha, beta=self.beta
        )
