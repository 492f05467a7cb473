"""Objectives for a student and a teacher whose tokenizers differ."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from tutelage.core.crossing import SharedWords
from tutelage.objectives.cross_vocabulary.outcomes import (
    GroupScores,
    outcomes,
    sorted_distance,
)
from tutelage.objectives.divergences import Divergence, ForwardKL
from tutelage.objectives.objective import Objective
from tutelage.objectives.softmax import log_softmax_at


class CrossVocabulary(Objective, ABC):
    """An objective over groups of tokens that say the same in two tokenizers.

    A group's value stands at its first token; the group's other tokens, and those without a
    partner, have 0. Where both models have one tokenizer, `from_logits` is the same with every
    token a group of its own.
    """

    @property
    @abstractmethod
    def at_temperature(self) -> float:
        """Divides both models' logits, at the first token of a group and at the later ones."""

    @abstractmethod
    def group_values(
        self, student: GroupScores, teacher: GroupScores, words: SharedWords
    ) -> Float[Tensor, " G"]:
        """One number for each group, differentiable in the student's side."""


@final
class AlignedKL(CrossVocabulary):
    """A divergence over the words both vocabularies have, and sorted probabilities of the others.

    Where a group begins, both models have read the same text. They are compared over these
    outcomes: the whole group is said (its probability by the chain rule, over as many tokens as
    the side needs); the first token is one of the other words that both have; anything else. That
    makes a distribution on each side, so the divergence is never negative and is 0 at equality,
    unlike the sub-distributions that TRL's GOLD compares. What the words of one side alone are
    worth besides their sum, `rest_weight` looks at.

        divergence(outcomes) + rest_weight * sum_k |sorted student rest - sorted teacher rest|

    With one tokenizer on both sides it is the divergence itself.

    Source: after GOLD in TRL (Patiño et al. 2025, huggingface.co/spaces/HuggingFaceH4/
    on-policy-distillation), with the last outcome of Common-Support Distillation,
    arXiv:2610.28895.
    """

    kind: Literal["aligned_kl"] = "aligned_kl"

    divergence: Annotated[Divergence, Field(discriminator="kind")] = ForwardKL()
    """Over the outcomes, such as {kind: jsd}; its temperature is for all of it."""

    rest_weight: Annotated[float, Ge(0)] = 1.0
    """What the sorted probabilities of words that only one side has count; 0 leaves them alone,
    and spares sorting them."""

    @property
    @override
    def at_temperature(self) -> float:
        return self.divergence.temperature

    @override
    def group_values(
        self, student: GroupScores, teacher: GroupScores, words: SharedWords
    ) -> Float[Tensor, " G"]:
        values = self.divergence.divergence(*outcomes(student, teacher, words))
        if self.rest_weight:
            mine = _rest(student, words.student_rest)
            theirs = _rest(teacher, words.teacher_rest)
            values = values + self.rest_weight * sorted_distance(mine, theirs)
        factor = self.divergence.temperature**2 if self.divergence.scale_by_t2 else 1.0
        return values * factor

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """The divergence: one vocabulary has no word that the other lacks."""
        return self.divergence.from_logits(student_logits, teacher_logits, labels)

    @override
    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """The divergence's own."""
        return self.divergence.rows(student_logits, teacher_logits, labels)


def _rest(side: GroupScores, ids: Int[Tensor, " S"]) -> Float[Tensor, "G S"]:
    """Probabilities of the words of one side alone; the first token is an outcome already."""
    p = side.logp.index_select(1, ids).exp()
    return p.masked_fill(ids == side.first[:, None], 0.0)


@final
class ULD(CrossVocabulary):
    """How far the two sides' sorted probabilities are apart, whatever the words are.

        sum_k |k-th largest of the student - k-th largest of the teacher|

    From 0 to 2, no nats. Compared where groups begin, not at the n-th token of both answers as in
    the paper, whose n-th tokens soon stand in different places of the text. The token that is
    there is split in two: the group goes on as it is there, or not. The paper adds it to a
    cross-entropy of weight 1: see `weighted_sum`.

    Source: Boizard et al. 2024 (ULD), arXiv:2402.12030.
    """

    kind: Literal["uld"] = "uld"

    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides both models' logits."""

    @property
    @override
    def at_temperature(self) -> float:
        return self.temperature

    @override
    def group_values(
        self, student: GroupScores, teacher: GroupScores, words: SharedWords
    ) -> Float[Tensor, " G"]:
        return sorted_distance(_split(student), _split(teacher))

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """The same where every token is a group."""
        mine, theirs = (
            log_softmax_at(logits, self.temperature).exp()
            for logits in (student_logits, teacher_logits)
        )
        return sorted_distance(mine, theirs)


def _split(side: GroupScores) -> Float[Tensor, "G V1"]:
    """Probabilities with the group itself in the place of its first token, and straying behind."""
    logp = side.logp.scatter(1, side.first[:, None], side.group_logp[:, None])
    return torch.cat([logp, side.strayed_logp[:, None]], dim=1).exp()
