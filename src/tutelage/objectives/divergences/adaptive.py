"""Both directions of KL, weighed by where student and teacher differ.

The weights are measured on the current pair and taken as constants.
"""

from typing import Annotated, Literal, final

import torch
from annotated_types import Gt, Lt
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import row_kernels
from tutelage.objectives.divergences.kl import forward_kl, reverse_kl
from tutelage.objectives.objective import Divergence
from tutelage.objectives.softmax import expected


def adaptive_kl(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    head_mass: float,
) -> Float[Tensor, "*at"]:
    """Forward KL as far as the teacher's head is wrong, reverse KL as far as its tail is.

        c * forward_kl + (1 - c) * reverse_kl,   c = gap in the head / whole gap

    where a gap is a sum of |teacher(v) - student(v)| and the head holds the teacher's likeliest
    tokens as long as their masses add up to at most `head_mass`, and always the likeliest one
    (ABKD's boundary). Where the two are equal, c is one half. No gradient flows through c.

    Source: Wu et al. 2024 (adaptive KL), arXiv:2404.02657.
    """
    with torch.no_grad():
        teacher_p, order = teacher_logp.exp().sort(dim=-1, descending=True, stable=True)
        gap = (teacher_p - student_logp.exp().gather(-1, order)).abs()
        in_head = teacher_p.cumsum(dim=-1) <= head_mass
        in_head[..., 0] = True
        whole = gap.sum(dim=-1)
        head = torch.where(in_head, gap, 0.0).sum(dim=-1)
        share = torch.where(whole > 0, head / whole, 0.5)
    forward = share * forward_kl(student_logp, teacher_logp)
    reverse = (1 - share) * reverse_kl(student_logp, teacher_logp)
    # A share of 0 takes its direction out, even where that is infinite.
    return torch.where(share > 0, forward, 0.0) + torch.where(share < 1, reverse, 0.0)


def todi(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at"]:
    """Forward KL for tokens the student underrates, reverse KL for those it overrates.

        sum_v a p (log p - log q) + (1 - a) q (log q - log p),   a = p / (p + q), a constant

    with p the teacher and q the student. The value is identically that of `jeffreys`; only the
    gradient differs.

    Source: Jung et al. 2025 (ToDi), arXiv:2505.16297.
    """
    log_ratio = teacher_logp - student_logp
    # What both rule out has no ratio; a nan here would reach the gradient through the product.
    lift = torch.sigmoid(log_ratio.detach()).nan_to_num(nan=0.5)
    return expected(teacher_logp.exp(), lift * log_ratio) + expected(
        student_logp.exp(), (lift - 1) * log_ratio
    )


@final
class AdaptiveKL(Divergence):
    """Both directions of KL, weighed by whether the teacher's head or tail is wrong.

    Source: Wu et al. 2024 (adaptive KL), arXiv:2404.02657.
    """

    kind: Literal["adaptive_kl"] = "adaptive_kl"

    head_mass: Annotated[float, Gt(0), Lt(1)] = 0.5
    """How much of the teacher's mass makes up its head (mu in the paper)."""

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return adaptive_kl(student_logp, teacher_logp, head_mass=self.head_mass)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.adaptive_kl_rows(
            student_scores, teacher_scores, head_mass=self.head_mass
        )


@final
class ToDi(Divergence):
    """A direction of KL for each token of the vocabulary, by who rates it higher.

    Source: Jung et al. 2025 (ToDi), arXiv:2505.16297.
    """

    kind: Literal["todi"] = "todi"

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return todi(student_logp, teacher_logp)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.todi_rows(student_scores, teacher_scores)
