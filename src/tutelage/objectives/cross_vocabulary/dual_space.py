"""Distillation in both models' spaces, through projections that are trained along."""

from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from tutelage.core.errors import ConfigError
from tutelage.objectives.divergences import forward_kl
from tutelage.objectives.objective import Objective


@final
class Bridge(nn.Module):
    """Two linear maps between the hidden states of a student and a teacher, trained in fp32.

    Source: Zhang et al. 2024 (DSKD), arXiv:2406.17328.
    """

    def __init__(self, student_width: int, teacher_width: int, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.to_teacher = nn.Linear(student_width, teacher_width)
            self.to_student = nn.Linear(teacher_width, student_width)


@final
class DualSpace(Objective):
    """Each model's hidden states go through the other's head, where both have one vocabulary.

    In the student's space, the teacher's projected state makes scores with the student's head,
    held still. They learn to say the token that is there, and the student learns from them where
    their favourite is right. In the teacher's space, the student's projected state makes scores
    with the teacher's head and learns from the teacher's own.

        -log h(y) + [h's favourite is y] KL(h held still || student)
                  + KL(teacher || projected student)

    where h is the projected teacher and y the token that is there.

    Looked at where a group is one token on each side, both of them the same word: the exact
    alignment of the second paper, not the cross-attention of the first. It is not 0 at equality,
    and its projections are trained with the student, checkpointed and left out of what is saved.

    Source: Zhang et al. 2024 (DSKD), arXiv:2406.17328; Zhang et al. 2025 (DSKD v2),
    arXiv:2504.11426.
    """

    kind: Literal["dual_space"] = "dual_space"

    temperature: Annotated[float, Gt(0)] = 2.0
    """Divides all logits but those of the projected teacher's cross-entropy (kd_temp)."""

    student_space: Annotated[float, Ge(0)] = 1.0
    """What the comparison in the student's space counts."""

    teacher_space: Annotated[float, Ge(0)] = 1.0
    """What the one in the teacher's space counts."""

    only_right: bool = True
    """Learn from the projected teacher only where its favourite is the token that is there."""

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """Refused: scores have no space to be projected from."""
        raise ConfigError(
            "objective.kind is dual_space, and the teacher has the student's tokenizer; it must "
            "have another, whose hidden states are then projected. Use forward_kl."
        )

    def values(self, scores: "DualScores") -> Float[Tensor, " G"]:
        """One number for each pair of tokens, differentiable in everything but the teacher."""
        at = self.temperature
        right = scores.projected_teacher.argmax(dim=1) == scores.student_labels
        taught = forward_kl(
            (scores.student / at).log_softmax(dim=1),
            (scores.projected_teacher.detach() / at).log_softmax(dim=1),
        )
        taught = torch.where(right, taught, 0.0) if self.only_right else taught
        said = nn.functional.cross_entropy(
            scores.projected_teacher, scores.student_labels, reduction="none"
        )
        theirs = forward_kl(
            (scores.projected_student / at).log_softmax(dim=1),
            (scores.teacher / at).log_softmax(dim=1),
        )
        return self.student_space * (said + taught) + self.teacher_space * theirs


@final
class DualScores:
    """Four tables of logits over the two vocabularies, for a few pairs of tokens."""

    def __init__(
        self,
        *,
        student: Float[Tensor, "G V"],
        projected_teacher: Float[Tensor, "G V"],
        teacher: Float[Tensor, "G U"],
        projected_student: Float[Tensor, "G U"],
        student_labels: Int[Tensor, " G"],
    ) -> None:
        self.student = student
        self.projected_teacher = projected_teacher
        self.teacher = teacher
        self.projected_student = projected_student
        self.student_labels = student_labels
