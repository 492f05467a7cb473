"""What a clip does to a batch: how much it holds, and where it turns the gradient round."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tutelage.objectives.divergences.entrywise import Entrywise
from tutelage.objectives.entries import PointwiseClip, TokenSumClip, TokenWeightClip
from tutelage.objectives.softmax import log_softmax_at


@final
@dataclass(frozen=True, kw_only=True)
class ClipMeasures:
    """One number for each position; no gradient."""

    clipped_entries: Float[Tensor, "*at"]
    """The share of compared entries that are clipped; all of them where the position is."""
    clipped_teacher_mass: Float[Tensor, "*at"]
    """How much of the teacher's probability lies on clipped entries."""
    reversed_top: Bool[Tensor, "*at"]
    """Descent lowers the teacher's favourite, though the student rates it too low already."""
    negative: Bool[Tensor, "*at"]
    """The loss is below 0, where no divergence is."""


@torch.no_grad()
def clip_measures(
    objective: Entrywise,
    student_logits: Float[Tensor, "*at V"],
    teacher_logits: Float[Tensor, "*at V"],
) -> ClipMeasures:
    """All measures of an objective's clip, on raw scores over the same entries."""
    student, teacher = (
        log_softmax_at(side, objective.temperature) for side in (student_logits, teacher_logits)
    )
    classes = student, teacher
    if objective.support is not None:
        classes = objective.support.restricted(student, teacher)
    over = clipped_entries(objective, *classes)
    with torch.enable_grad():
        scores = student.detach().clone().requires_grad_()
        values = objective.divergence(scores.log_softmax(dim=-1), teacher)
        (gradient,) = torch.autograd.grad(values.sum(), scores)
    return ClipMeasures(
        clipped_entries=over.to(student.dtype).mean(dim=-1),
        clipped_teacher_mass=(classes[1].exp() * over).sum(dim=-1),
        reversed_top=reversed_top(student, teacher, gradient),
        negative=values.detach() < 0,
    )


@torch.no_grad()
def clipped_entries(
    objective: Entrywise,
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
) -> Bool[Tensor, "*at V"]:
    """Which entries the objective's clip holds; a clip of positions holds all or none of one."""
    terms = objective.terms(student_logp, teacher_logp)
    match objective.clip:
        case PointwiseClip(threshold=threshold):
            return terms >= threshold
        case TokenSumClip(threshold=threshold) | TokenWeightClip(threshold=threshold):
            return (terms.sum(dim=-1, keepdim=True) >= threshold).expand(terms.shape)
        case _:
            return torch.zeros_like(terms, dtype=torch.bool)


@torch.no_grad()
def reversed_top(
    student_logp: Float[Tensor, "*at V"],
    teacher_logp: Float[Tensor, "*at V"],
    gradient: Float[Tensor, "*at V"],
) -> Bool[Tensor, "*at"]:
    """Whether descent lowers the teacher's top entry although the student rates it lower still.

    Args:
        gradient: that of any loss, in the student's scores.
    """
    top = teacher_logp.argmax(dim=-1, keepdim=True)
    student, teacher, slope = (
        side.gather(-1, top).squeeze(-1) for side in (student_logp, teacher_logp, gradient)
    )
    return (student < teacher) & (slope > 0)


@torch.no_grad()
def overlap_ratio(
    student_logits: Float[Tensor, "*at V"],
    teacher_logits: Float[Tensor, "*at V"],
    *,
    num_entries: int,
) -> Float[Tensor, "*at"]:
    """The share of both sides' likeliest entries that they have in common, from 0 to 1.

    Distillation on the student's text progresses as they come to agree on these.

    Source: "Rethinking on-policy distillation" 2026, arXiv:2604.13016.
    """
    count = min(num_entries, student_logits.shape[-1])
    first, second = (side.topk(count, dim=-1).indices for side in (student_logits, teacher_logits))
    named = torch.zeros_like(student_logits, dtype=torch.bool).scatter(-1, first, value=True)
    return named.gather(-1, second).to(torch.float32).mean(dim=-1)
