"""Total variation: half the L1 distance of two distributions."""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import row_kernels
from tutelage.objectives.objective import Divergence


def total_variation(
    student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at"]:
    """Half of sum_v |student(v) - teacher(v)|: the mass that would have to move, from 0 to 1.

    The gradient does not shrink as the student comes near, and is 0 where the two are equal.

    Source: Wen et al. 2023 (f-distill), arXiv:2307.15190.
    """
    return (student_logp.exp() - teacher_logp.exp()).abs().sum(dim=-1) / 2


@final
class TotalVariation(Divergence):
    """Half the L1 distance of the two distributions.

    Source: Wen et al. 2023 (f-distill), arXiv:2307.15190.
    """

    kind: Literal["total_variation"] = "total_variation"

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        return total_variation(student_logp, teacher_logp)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return row_kernels.total_variation_rows(student_scores, teacher_scores)
