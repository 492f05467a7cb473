"""AMiD: divergences from or to an alpha-mixture of student and teacher."""

from typing import Annotated, Literal, final

from annotated_types import Gt, Le, Lt
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import row_kernels
from tutelage.objectives.divergences.alpha_beta import alpha_beta
from tutelage.objectives.divergences.kl import forward_kl
from tutelage.objectives.divergences.mixtures import mixture_logp
from tutelage.objectives.objective import Divergence

_PAPER_ALPHA, _PAPER_BETA = 0.2, 0.7


def alpha_mixture_logp(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    *,
    teacher_share: float,
    curve: float,
) -> Float[Tensor, "*at V"]:
    """The log of the normalised alpha-mixture, with p the teacher and q the student.

        (share * p^c + (1 - share) * q^c)^(1/c),   c = (1 - curve) / 2

    A curve of -1 is the arithmetic mixture, 1 the geometric one, which rules out what either
    side rules out.

    Source: Shin et al. 2025 (AMiD), arXiv:2510.15982.
    """
    mixture = mixture_logp(
        student_logp, teacher_logp, teacher_share=teacher_share, power=(1 - curve) / 2
    )
    return mixture.log_softmax(dim=-1)


@final
class AMiD(Divergence):
    """A divergence between one of the two models and their alpha-mixture.

    The mixture moves with the student and carries its gradient.

    Source: Shin et al. 2025 (AMiD), arXiv:2510.15982.
    """

    kind: Literal["amid"] = "amid"

    curve: Annotated[float, Le(1)] = 0.5
    """The mixture's shape (alpha in the paper): -1 arithmetic, 1 geometric."""

    teacher_share: Annotated[float, Gt(0), Lt(1)] = 0.5
    """How much of the mixture is teacher (lambda in the paper)."""

    between: Literal["teacher_mixture", "student_mixture", "mixture_teacher", "mixture_student"] = (
        "teacher_mixture"
    )
    """From which to which the divergence goes: `teacher_mixture` is D(teacher || mixture)."""

    measure: Literal["kl", "alpha_beta"] = "kl"
    """The divergence itself; `alpha_beta` is the paper's, at alpha 0.2 and beta 0.7."""

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        sides = {
            "student": student_logp,
            "teacher": teacher_logp,
            "mixture": alpha_mixture_logp(
                student_logp, teacher_logp, teacher_share=self.teacher_share, curve=self.curve
            ),
        }
        first, second = (sides[name] for name in self.between.split("_"))
        if self.measure == "kl":
            return forward_kl(second, first)
        return alpha_beta(second, first, alpha=_PAPER_ALPHA, beta=_PAPER_BETA)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        power = (1 - self.curve) / 2
        if self.measure == "kl":
            return row_kernels.amid_kl_rows(
                student_scores,
                teacher_scores,
                between=self.between,
                teacher_share=self.teacher_share,
                power=power,
            )
        return row_kernels.amid_alpha_beta_rows(
            student_scores,
            teacher_scores,
            between=self.between,
            teacher_share=self.teacher_share,
            power=power,
            powers=(_PAPER_ALPHA, _PAPER_BETA),
        )
