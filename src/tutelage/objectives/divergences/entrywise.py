"""Divergences that add up one term for each vocabulary entry, so that terms can be clipped."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.objectives.entries import ClipSettings, NoClip, TopSupport
from tutelage.objectives.objective import Divergence


class Entrywise(Divergence, ABC):
    """A divergence with a support and a clip: the terms of fewer entries, each bounded.

    A support chooses the classes, a clip bounds what a class or a position may contribute, and
    `scale_by_t2` comes last of all: thresholds are nats at the temperature.
    """

    clip: ClipSettings = NoClip()
    """What happens where one entry, or one position, costs too much. By default nothing."""

    support: TopSupport | None = None
    """The entries that are compared one by one; null compares the whole vocabulary."""

    @abstractmethod
    def terms(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at V"]:
        """What each entry contributes, in nats: 0 where both sides agree."""

    @abstractmethod
    def whole(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        """The divergence itself: the sum of the terms."""

    @abstractmethod
    def whole_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        """Value and gradient of `whole` for a few rows of finite scores, in place."""

    @abstractmethod
    def pointwise_rows(
        self,
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
        threshold: float,
    ) -> Float[Tensor, " R"]:
        """Value and gradient of the sum of the terms, each clipped at the threshold, in place."""

    @override
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        if self.support is not None:
            student_logp, teacher_logp = self.support.restricted(student_logp, teacher_logp)
        return self.clip.clipped(self.whole, self.terms, student_logp, teacher_logp)

    @override
    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        if self.support is not None:
            return self.support.rows(self._clipped_rows, student_scores, teacher_scores)
        return self._clipped_rows(student_scores, teacher_scores)

    def _clipped_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        return self.clip.rows(self.whole_rows, self.pointwise_rows, student_scores, teacher_scores)
