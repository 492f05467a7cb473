"""Supports: compare on the top entries of a side only, the rest lumped together or left out."""

from collections.abc import Callable
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.core.settings import Settings
from tutelage.objectives import row_kernels

Restricted = tuple[Tensor, Tensor]
"""The student's and the teacher's log-probabilities over fewer classes than the vocabulary has."""


def tail_logp(logp: Float[Tensor, "*at V"], ids: Int[Tensor, "*at K"]) -> Float[Tensor, "*at 1"]:
    """Log of the mass outside the K ids, summed over the rest itself: no digits cancel.

    -inf, without a gradient, where nothing is outside.
    """
    outside = logp.scatter(-1, ids, -torch.inf)
    empty = (outside == -torch.inf).all(dim=-1, keepdim=True)
    # Filled first: the gradient of a logsumexp over nothing is nan.
    return (
        outside.masked_fill(empty, 0.0)
        .logsumexp(dim=-1, keepdim=True)
        .masked_fill(empty, -torch.inf)
    )


@final
class TopSupport(Settings):
    """The likeliest entries of one side, or of both, and what becomes of the rest.

    Which entries they are carries no gradient. With as many entries as the vocabulary has, it is
    the whole vocabulary.
    """

    chosen_by: Literal["teacher", "student", "union"] = "teacher"
    """Whose likeliest entries; `union` takes those of both."""

    num_entries: Annotated[int, Ge(1)] = 100
    """How many of each side that chooses (k in the papers)."""

    rest: Literal["tail_bucket", "renormalised"] = "tail_bucket"
    """`tail_bucket` makes one more class of all other entries: never more than the whole
    divergence for a KL, and the student's mass outside stays under control. `renormalised`
    compares within the support only, as OPSD's code does: mass outside is free."""

    def restricted(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Restricted:
        """Both sides over the support's classes, normalised, differentiable in the student."""
        if self.num_entries >= student_logp.shape[-1]:
            return student_logp, teacher_logp
        ids, again = self._chosen(student_logp.detach(), teacher_logp)
        student, teacher = (
            self._classes(logp, ids, again) for logp in (student_logp, teacher_logp)
        )
        return student, teacher

    def rows(
        self,
        kernel: Callable[[Tensor, Tensor], Tensor],
        student_scores: Float[Tensor, "R V"],
        teacher_scores: Float[Tensor, "R V"],
    ) -> Float[Tensor, " R"]:
        """A kernel's value and gradient on the support of a few rows of finite scores, in place."""
        if self.num_entries >= student_scores.shape[-1]:
            return kernel(student_scores, teacher_scores)
        ids, again = self._chosen(student_scores, teacher_scores)
        return row_kernels.restricted_rows(
            student_scores,
            teacher_scores,
            row_kernels.Kept(ids=ids, again=again, tail=self.rest == "tail_bucket"),
            kernel,
        )

    def _chosen(
        self, student: Float[Tensor, "*at V"], teacher: Float[Tensor, "*at V"]
    ) -> tuple[Int[Tensor, "*at K"], Bool[Tensor, "*at K"] | None]:
        """Ids, and for a union which of them were named before."""
        if self.chosen_by != "union":
            side = student if self.chosen_by == "student" else teacher
            return side.topk(self.num_entries, dim=-1, sorted=False).indices, None
        first, second = (
            side.topk(self.num_entries, dim=-1, sorted=False).indices for side in (teacher, student)
        )
        named = torch.zeros_like(student, dtype=torch.bool).scatter(-1, first, value=True)
        again = torch.cat([torch.zeros_like(first, dtype=torch.bool), named.gather(-1, second)], -1)
        return torch.cat([first, second], dim=-1), again

    def _classes(
        self,
        logp: Float[Tensor, "*at V"],
        ids: Int[Tensor, "*at K"],
        again: Bool[Tensor, "*at K"] | None,
    ) -> Float[Tensor, "*at C"]:
        kept = logp.gather(-1, ids)
        if again is not None:
            kept = kept.masked_fill(again, -torch.inf)
        if self.rest == "tail_bucket":
            return torch.cat([kept, tail_logp(logp, ids)], dim=-1)
        empty = (kept == -torch.inf).all(dim=-1, keepdim=True)
        # A side without any mass on the support stays without.
        return kept.masked_fill(empty, 0.0).log_softmax(dim=-1).masked_fill(empty, -torch.inf)
