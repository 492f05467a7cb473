"""Losses from a teacher that kept only some of its vocabulary: top-k entries or drawn ids.

Pure functions: what stores and serves such targets lives elsewhere. A `LogitsTarget` is always at
least as good.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.targets import SampledTarget, TopKTarget
from tutelage.objectives.divergences.entrywise import Entrywise
from tutelage.objectives.entries import tail_logp
from tutelage.objectives.objective import Divergence
from tutelage.objectives.softmax import log_softmax_at

Rest = Literal["tail_bucket", "renormalised", "truncated"]


def top_k_divergence(
    student_logits: Float[Tensor, "*at V"],
    target: TopKTarget,
    objective: Divergence,
    *,
    rest: Rest = "tail_bucket",
) -> Float[Tensor, "*at"]:
    """Any divergence on the K tokens a teacher kept, in nats.

    Args:
        rest: what becomes of the tokens that were not kept. `tail_bucket` lumps them into one more
            class on both sides: never negative, for a KL never above that of the whole
            vocabulary, and the student's mass outside the K stays under control. `renormalised`
            compares within the K only, so that mass is free. `truncated` sums the K terms as they
            are: biased towards too sure a student, and negative at times; for comparisons.

    Raises:
        ConfigError: a temperature other than 1, which K log-probabilities cannot express; or a
            support of the objective's own.
    """
    if objective.temperature != 1:
        raise ConfigError(
            f"objective.temperature is {objective.temperature:g}; it must be 1 for a top-k "
            "target. The kept log-probabilities say how much mass the rest has but not over how "
            "many tokens, so they cannot be divided. Use a live teacher, or temperature: 1."
        )
    if isinstance(objective, Entrywise) and objective.support is not None:
        raise ConfigError(
            "objective.support is given; it must be null for a top-k target, which has chosen its "
            "entries already. Leave it out."
        )
    ids = target.ids.long()
    student_logp = log_softmax_at(student_logits)
    kept_student, kept_teacher = student_logp.gather(-1, ids), target.logp.detach()
    kept_teacher = kept_teacher.to(kept_student.dtype)
    if rest == "renormalised":
        return objective.divergence(
            kept_student.log_softmax(dim=-1), kept_teacher.log_softmax(dim=-1)
        )
    if rest == "tail_bucket":
        student_tail, teacher_tail = _tails(student_logp, ids, kept_teacher)
        kept_student = torch.cat([kept_student, student_tail], dim=-1)
        kept_teacher = torch.cat([kept_teacher, teacher_tail], dim=-1)
    return objective.divergence(kept_student, kept_teacher)


def _tails(
    student_logp: Float[Tensor, "*at V"],
    ids: Int[Tensor, "*at K"],
    kept_teacher: Float[Tensor, "*at K"],
) -> tuple[Float[Tensor, "*at 1"], Float[Tensor, "*at 1"]]:
    """The logs of both masses outside the K ids: the student's, then the teacher's.

    The teacher's is what is missing to 1, which rounding may leave a hair off: where nothing is
    outside for the student, nothing is for the teacher.
    """
    student_tail = tail_logp(student_logp, ids)
    teacher_tail = (1 - kept_teacher.exp().sum(dim=-1, keepdim=True)).clamp(min=0).log()
    return student_tail, teacher_tail.masked_fill(student_tail == -torch.inf, -torch.inf)


def sampled_cross_entropy(
    student_logits: Float[Tensor, "*at V"], target: SampledTarget
) -> Float[Tensor, "*at"]:
    """Minus the weighted log-probability of ids that the teacher drew, in nats.

    Over the draws, its mean gradient is exactly that of forward KL (student - teacher). Its value
    is a cross-entropy: the teacher's entropy away from the KL, which the draws do not tell.

    Source: Anshumann et al. 2025 (random-sampling knowledge distillation), arXiv:2503.16870.
    """
    drawn = log_softmax_at(student_logits).gather(-1, target.ids.long())
    weights = target.weights.detach().to(drawn.dtype)
    return -(weights * torch.where(weights > 0, drawn, 0.0)).sum(dim=-1)
