"""Several teachers' scores as one teacher's: their mixture, or the product of what they say."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.core.targets import SeveralTarget
from tutelage.objectives.fused.scores import LinearScores, Memory, Scores
from tutelage.objectives.row_kernels.compared import log_softmax_


def blend_(
    total: Float[Tensor, "R V"] | None,
    scores: Float[Tensor, "R V"],
    weights: Float[Tensor, " R"],
    *,
    product: bool,
) -> Float[Tensor, "R V"]:
    """One more teacher's scores on top of what the others made, all of it log-probabilities.

    `scores` is overwritten, and is what comes back where it is the first. A row of no weight
    counts for nothing, whatever its scores are.
    """
    log_softmax_(scores)
    share = weights.to(scores.dtype)[:, None]
    if product:
        scores.mul_(share).masked_fill_(share == 0, 0.0)
        return scores if total is None else total.add_(scores)
    scores.add_(share.log()).masked_fill_(share == 0, -torch.inf)
    return scores if total is None else torch.logaddexp(total, scores, out=total)


@final
class BlendedScores(Scores):
    """Rows of all members, made of their own tiles and blended row by row."""

    def __init__(
        self, members: Sequence[LinearScores], target: SeveralTarget, memory: Memory
    ) -> None:
        self.members = members
        self._weights = target.weights.detach()
        self._product = target.blend == "product"
        self._memory = memory
        self._first = 0

    @override
    def load(self, start: int, stop: int) -> None:
        self._first = start
        for member, share in zip(self.members, self._weights[start:stop].T, strict=True):
            # Whoever is not asked about any of these tokens makes no scores for them.
            if bool((share != 0).any()):
                member.load(start, stop)

    @override
    def rows(self, start: int, stop: int, scratch: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        at = slice(self._first + start, self._first + stop)
        total: Tensor | None = None
        for number, member in enumerate(self.members):
            share = self._weights[at, number]
            if not bool((share != 0).any()):
                continue
            shape = (stop - start, scratch.shape[1])
            own = self._memory.take(f"rows {number}", shape, scratch, scratch.dtype)
            scores = member.rows(start, stop, own)
            total = blend_(total, scores, share, product=self._product)
        assert total is not None  # noqa: S101  weights add up to 1
        return total
