"""What may come next for a group of tokens, so that two vocabularies can be asked about it."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.crossing import SharedWords


@final
@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """What one side says where G groups begin."""

    logp: Float[Tensor, "G V"]
    """Of the first token, over the entries that mean something."""
    first: Int[Tensor, " G"]
    """The first token that is there."""
    later: Float[Tensor, " G"]
    """Log-probability of the group's other tokens, each behind those before it: the product of
    conditional probabilities. 0 for a group of one token."""

    @property
    def first_logp(self) -> Float[Tensor, " G"]:
        """Of the token that is there."""
        return self.logp.gather(1, self.first[:, None])[:, 0]

    @property
    def group_logp(self) -> Float[Tensor, " G"]:
        """Of the whole group as it is there: the chain rule."""
        return self.first_logp + self.later

    @property
    def strayed_logp(self) -> Float[Tensor, " G"]:
        """That the first token is right and one of the others is not; -inf for a single token."""
        several = self.later < 0
        # Chosen before the logarithm: its slope at 0 would be infinite.
        later = torch.where(several, self.later, -1.0)
        strayed = self.first_logp + torch.log(-torch.expm1(later))
        return torch.where(several, strayed, -torch.inf)


def outcomes(
    student: GroupScores, teacher: GroupScores, words: SharedWords
) -> tuple[Float[Tensor, "G K"], Float[Tensor, "G K"]]:
    """Both sides over the same K = C + 2 outcomes of each group, as log-probabilities.

        0          the whole group is said as it is there
        1 ... C    the first token is this other word that both vocabularies have
        C + 1      anything else

    Each side adds up to 1: words of one vocabulary alone, and a group that is begun and then left,
    are in the last outcome. A word that begins the group on one side, and on that side only, is
    in the last outcome on both: for the side that has it, it is no other word.
    """
    known = (words.student_ids == student.first[:, None]) | (
        words.teacher_ids == teacher.first[:, None]
    )
    return (
        _one_side(student, words.student_ids, known),
        _one_side(teacher, words.teacher_ids, known),
    )


def _one_side(side: GroupScores, ids: Int[Tensor, " C"], known: Tensor) -> Float[Tensor, "G K"]:
    shared = side.logp.index_select(1, ids)
    # All entries that no outcome of their own has, the first token's place taken by straying.
    rest = side.logp.index_copy(1, ids, shared.masked_fill(~known, -torch.inf))
    rest = rest.scatter(1, side.first[:, None], side.strayed_logp[:, None])
    return torch.cat(
        [
            side.group_logp[:, None],
            shared.masked_fill(known, -torch.inf),
            _logsumexp(rest)[:, None],
        ],
        dim=1,
    )


def _logsumexp(logp: Float[Tensor, "G V"]) -> Float[Tensor, " G"]:
    """-inf, without a gradient, where nothing is there."""
    empty = (logp == -torch.inf).all(dim=1)
    # Filled first: the gradient of a logsumexp over nothing is nan.
    found = logp.masked_fill(empty[:, None], 0.0).logsumexp(dim=1)
    return found.masked_fill(empty, -torch.inf)


def sorted_distance(
    student_p: Float[Tensor, "*at V"], teacher_p: Float[Tensor, "*at U"]
) -> Float[Tensor, "*at"]:
    """sum_k |k-th largest of the student - k-th largest of the teacher|: names play no part.

    The shorter side is filled up with zeros: with entries of no probability. 0 to 2 for whole
    distributions.

    Source: Boizard et al. 2024 (ULD), arXiv:2402.12030: the optimal transport distance where
    moving any mass costs 1.
    """
    size = max(student_p.shape[-1], teacher_p.shape[-1])
    sides = [
        torch.nn.functional.pad(one, (0, size - one.shape[-1])).sort(dim=-1, descending=True).values
        for one in (student_p, teacher_p)
    ]
    return (sides[0] - sides[1]).abs().sum(dim=-1)
