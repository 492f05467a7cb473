"""Clips: what becomes of a divergence where a single entry, or a single position, costs too much.

Each pure function takes a divergence as its terms, one number for each vocabulary entry, which
are 0 where both sides agree and add up to the divergence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal, final

import torch
from annotated_types import Gt
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from tutelage.core.settings import Settings
from tutelage.objectives import row_kernels

Terms = Callable[[Tensor, Tensor], Tensor]
"""(student logp, teacher logp), both [*at V], to what each entry contributes, [*at V]."""

Whole = Callable[[Tensor, Tensor], Tensor]
"""(student, teacher) to nats per position: log-probabilities, or scores that are overwritten."""


def pointwise_clip(
    terms: Terms,
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    threshold: float,
) -> Float[Tensor, "*at"]:
    """sum_v min(terms(v), threshold): no entry costs more; the sum may be negative.

    With U the entries below the threshold and P_U their teacher mass, forward KL has the gradient
    P_U * student - teacher on U, and P_U * student off it: descent *lowers* a clipped token, the
    very one the teacher misses most. Student = teacher is stationary and not the minimum.

    Source: Zhao et al. 2026 (OPSD), arXiv:2601.18734, and its code.
    """
    with torch.no_grad():
        over = terms(student_logp, teacher_logp) >= threshold
    # Their terms may be infinite: taken out before the sum, so that no 0 * inf is differentiated.
    kept = terms(student_logp.masked_fill(over, 0.0), teacher_logp.masked_fill(over, 0.0))
    return torch.where(over, threshold, kept).sum(dim=-1)


def token_sum_clip(
    terms: Terms,
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    threshold: float,
) -> Float[Tensor, "*at"]:
    """min(divergence, threshold): a position above the threshold has no gradient at all."""
    with torch.no_grad():
        over = terms(student_logp, teacher_logp).sum(dim=-1) >= threshold
    kept = _without(over, terms, student_logp, teacher_logp)
    return torch.where(over, threshold, kept)


def token_weight_clip(
    terms: Terms,
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    threshold: float,
) -> Float[Tensor, "*at"]:
    """The divergence times min(1, threshold / divergence), a weight that is held still.

    The value is that of `token_sum_clip`; the gradient keeps its direction everywhere and is
    scaled down above the threshold. An infinite divergence weighs 0.
    """
    with torch.no_grad():
        infinite = terms(student_logp, teacher_logp).sum(dim=-1) == torch.inf
    values = _without(infinite, terms, student_logp, teacher_logp)
    held = values.detach()
    weighted = values * torch.where(held > threshold, threshold / held, 1.0)
    return torch.where(infinite, threshold, weighted)


def _without(
    positions: Tensor,
    terms: Terms,
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
) -> Float[Tensor, "*at"]:
    """The divergence, and 0 without a gradient at `positions`, whatever stands there."""
    out = positions.unsqueeze(-1)
    return terms(student_logp.masked_fill(out, 0.0), teacher_logp.masked_fill(out, 0.0)).sum(dim=-1)


class Clip(Settings, ABC):
    """One member of `ClipSettings`, told apart by its `kind`."""

    @abstractmethod
    def clipped(
        self,
        whole: Whole,
        terms: Terms,
        student_logp: Float[Tensor, "*at V"],
        teacher_logp: Float[Tensor, "*at V"],
    ) -> Float[Tensor, "*at"]:
        """The clipped divergence in nats, differentiable in the student."""

    @abstractmethod
    def rows(
        self,
        whole: Whole,
        pointwise: Callable[[Tensor, Tensor, float], Tensor],
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows of finite scores, in place.

        Args:
            whole: the kernel of the divergence without a clip.
            pointwise: the kernel with the entries' terms clipped at a threshold.
        """


@final
class NoClip(Clip):
    """The divergence as it is."""

    kind: Literal["none"] = "none"

    @override
    def clipped(
        self,
        whole: Whole,
        terms: Terms,
        student_logp: Float[Tensor, "*at V"],
        teacher_logp: Float[Tensor, "*at V"],
    ) -> Float[Tensor, "*at"]:
        return whole(student_logp, teacher_logp)

    @override
    def rows(
        self,
        whole: Whole,
        pointwise: Callable[[Tensor, Tensor, float], Tensor],
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
    ) -> Float[Tensor, " R"]:
        return whole(student_scores, teacher_scores)


@final
class PointwiseClip(Clip):
    """No vocabulary entry contributes more than the threshold; OPSD as published.

    It does not mute a large entry, it turns its gradient round: see `pointwise_clip`. Offered to
    reproduce the paper; `token_weight` bounds the gradient without changing its direction.
    """

    kind: Literal["pointwise"] = "pointwise"

    threshold: Annotated[float, Gt(0)] = 0.05
    """Nats one vocabulary entry may contribute at one position (tau in the paper)."""

    @override
    def clipped(
        self,
        whole: Whole,
        terms: Terms,
        student_logp: Float[Tensor, "*at V"],
        teacher_logp: Float[Tensor, "*at V"],
    ) -> Float[Tensor, "*at"]:
        return pointwise_clip(terms, student_logp, teacher_logp, self.threshold)

    @override
    def rows(
        self,
        whole: Whole,
        pointwise: Callable[[Tensor, Tensor, float], Tensor],
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
    ) -> Float[Tensor, " R"]:
        return pointwise(student_scores, teacher_scores, self.threshold)


@final
class TokenSumClip(Clip):
    """No position contributes more than the threshold; above it nothing is learned."""

    kind: Literal["token_sum"] = "token_sum"

    threshold: Annotated[float, Gt(0)] = 0.05
    """Nats one position may contribute."""

    @override
    def clipped(
        self,
        whole: Whole,
        terms: Terms,
        student_logp: Float[Tensor, "*at V"],
        teacher_logp: Float[Tensor, "*at V"],
    ) -> Float[Tensor, "*at"]:
        return token_sum_clip(terms, student_logp, teacher_logp, self.threshold)

    @override
    def rows(
        self,
        whole: Whole,
        pointwise: Callable[[Tensor, Tensor, float], Tensor],
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
    ) -> Float[Tensor, " R"]:
        values = whole(student_scores, teacher_scores)
        return row_kernels.stopped_above(values, student_scores, self.threshold)


@final
class TokenWeightClip(Clip):
    """A position above the threshold weighs less, so that it contributes just the threshold."""

    kind: Literal["token_weight"] = "token_weight"

    threshold: Annotated[float, Gt(0)] = 0.05
    """Nats one position may contribute."""

    @override
    def clipped(
        self,
        whole: Whole,
        terms: Terms,
        student_logp: Float[Tensor, "*at V"],
        teacher_logp: Float[Tensor, "*at V"],
    ) -> Float[Tensor, "*at"]:
        return token_weight_clip(terms, student_logp, teacher_logp, self.threshold)

    @override
    def rows(
        self,
        whole: Whole,
        pointwise: Callable[[Tensor, Tensor, float], Tensor],
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
    ) -> Float[Tensor, " R"]:
        values = whole(student_scores, teacher_scores)
        return row_kernels.slowed_above(values, student_scores, self.threshold)


ClipSettings = Annotated[
    NoClip | PointwiseClip | TokenSumClip | TokenWeightClip, Field(discriminator="kind")
]
"""Any clip, as a field of a tree of settings."""
