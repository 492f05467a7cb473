"""A move that listens to itself, for clocks that go by what it says."""

from typing import final

import torch
from jaxtyping import Float
from pydantic import PrivateAttr
from torch import Tensor
from typing_extensions import override

from tutelage.objectives import Move
from tutelage.objectives.softmax import expected, log_softmax_at


@final
class MeasuredMove(Move):
    """A move that notes, in passing, how far the student is from where the target was moved."""

    inner: Move
    _nats: list[Tensor] = PrivateAttr(default_factory=list[Tensor])

    @override
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        return self.inner.moved(student_logits, teacher_logits, t=t)

    @override
    def move_rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        *,
        t: float | Float[Tensor, " R"] | None = None,
    ) -> None:
        self.inner.move_rows(student_logits, teacher_logits, t=t)
        moved = log_softmax_at(teacher_logits)
        self._nats.append(expected(moved.exp(), -log_softmax_at(student_logits)))

    def mean(self, weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """The weighted sum over all tokens; rows are moved in the order of the tokens."""
        if not self._nats:
            return weights.sum() * 0
        return (torch.where(weights != 0, torch.cat(self._nats), 0.0) * weights).sum()
