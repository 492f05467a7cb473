"""Losses from top-k entries or drawn ids, as plain differentiable definitions.

What stores and serves such targets lives elsewhere. A `LogitsTarget` is always at least as good.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.targets import Rest, SampledTarget, TopKTarget
from tutelage.objectives.entries import tail_logp
from tutelage.objectives.objective import Divergence
from tutelage.objectives.partial.answers import refusal
from tutelage.objectives.softmax import log_softmax_at


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
        ConfigError: a temperature other than the target's, which K log-probabilities cannot
            express; or a support of the objective's own.
    """
    # Truncation is refused in training only: here it is what others are compared with.
    asked = None if rest == "truncated" else rest
    reason = refusal(objective, "top_k", temperature=target.temperature, rest=asked)
    if reason is not None:
        raise ConfigError(reason)
    student, teacher = classes(student_logits, target, objective.temperature, rest=rest)
    values = objective.divergence(student, teacher)
    return values * objective.temperature**2 if objective.scale_by_t2 else values


def classes(
    student_logits: Float[Tensor, "*at V"], target: TopKTarget, temperature: float, *, rest: Rest
) -> tuple[Float[Tensor, "*at C"], Float[Tensor, "*at C"]]:
    """Log-probabilities of both sides over the kept entries, and over the rest where it counts."""
    ids = target.ids.long()
    student_logp = log_softmax_at(student_logits, temperature)
    kept_student, kept_teacher = student_logp.gather(-1, ids), target.logp.detach()
    kept_teacher = kept_teacher.to(kept_student.dtype)
    if rest == "renormalised":
        return kept_student.log_softmax(dim=-1), kept_teacher.log_softmax(dim=-1)
    if rest == "truncated":
        return kept_student, kept_teacher
    student_tail = tail_logp(student_logp, ids)
    teacher_tail = tail_of(target).to(kept_student.dtype)
    # Where nothing is outside for the student, nothing is for the teacher.
    teacher_tail = teacher_tail.masked_fill(student_tail == -torch.inf, -torch.inf)
    teacher = torch.cat([kept_teacher, teacher_tail], dim=-1)
    if target.tail_logp is not None:
        # Kept in few bits, the classes add up to 1 only nearly.
        teacher = teacher.log_softmax(dim=-1)
    return torch.cat([kept_student, student_tail], dim=-1), teacher


def tail_of(target: TopKTarget) -> Float[Tensor, "*at 1"]:
    """The log of the teacher's mass outside the K ids; without its own number, what they leave."""
    if target.tail_logp is not None:
        return target.tail_logp.detach().unsqueeze(-1)
    return (1 - target.logp.detach().exp().sum(dim=-1, keepdim=True)).clamp(min=0).log()


def sampled_cross_entropy(
    student_logits: Float[Tensor, "*at V"], target: SampledTarget
) -> Float[Tensor, "*at"]:
    """Minus the weighted log-probability of ids that the teacher drew, in nats.

    Over the draws, its mean gradient is exactly that of forward KL (student - teacher) at the
    target's temperature, but for a factor of 1 / temperature. Its value is a cross-entropy: the
    teacher's entropy away from the KL, which the draws do not tell.

    Source: Anshumann et al. 2025 (random-sampling knowledge distillation), arXiv:2503.16870.
    """
    logp = log_softmax_at(student_logits, target.temperature)
    drawn = logp.gather(-1, target.ids.long())
    weights = target.weights.detach().to(drawn.dtype)
    return -(weights * torch.where(weights > 0, drawn, 0.0)).sum(dim=-1)
