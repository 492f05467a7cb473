"""Any objective on a partial target: as a plain definition, and as the fused path's row kernel."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.targets import (
    PartialTarget,
    Rest,
    SameVocabularyTarget,
    SampledTarget,
    TopKTarget,
)
from tutelage.objectives import row_kernels
from tutelage.objectives.concrete_score import ConcreteScore
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.moved_targets import Move
from tutelage.objectives.objective import Divergence, Objective
from tutelage.objectives.partial.answers import refusal
from tutelage.objectives.partial.top_k import (
    classes,
    sampled_cross_entropy,
    tail_of,
    top_k_divergence,
)
from tutelage.objectives.softmax import expected, upcast
from tutelage.objectives.union import WeightedSum


def refuse(objective: Objective, target: PartialTarget, num_entries: int) -> None:
    """Refuse an objective that needs more than the target holds, and ids that the student lacks.

    Raises:
        ConfigError: the objective; says what it lacks.
        DataError: the target names entries that the student has not, or has no entropy.
    """
    top_k = isinstance(target, TopKTarget)
    reason = refusal(
        objective,
        "top_k" if top_k else "sampled",
        temperature=target.temperature,
        rest=target.rest if top_k else None,
    )
    if reason is not None:
        raise ConfigError(reason)
    if target.num_real is not None and target.num_real > num_entries:
        raise DataError(
            f"The teacher's answer is over {target.num_real} entries of the vocabulary and the "
            f"student shares {num_entries}; they must be the same. Make the answers for this pair."
        )


def refuse_move(target: SameVocabularyTarget | None, move: Move | None) -> None:
    """Refuse to move a target of which only a part is known.

    Raises:
        ConfigError: there is a move.
    """
    if move is None or not isinstance(target, PartialTarget):
        return
    kind = move.model_dump().get("kind", type(move).__name__)
    raise ConfigError(
        f"move.kind is {kind}, and the teacher answers with part of its vocabulary; it must be "
        "none, for a target is moved over all entries. Leave the move out, or use hidden states."
    )


def partial_per_token(
    student_logits: Float[Tensor, "*at V"], target: PartialTarget, objective: Objective
) -> Float[Tensor, "*at"]:
    """Nats per position, differentiable in the student's logits: the definition.

    The student's entries behind the target's `num_real` are left out.
    """
    refuse(objective, target, student_logits.shape[-1])
    return _defined(upcast(student_logits[..., : target.num_real]), target, objective)


def _defined(
    student: Float[Tensor, "*at V"], target: PartialTarget, objective: Objective
) -> Float[Tensor, "*at"]:
    if isinstance(objective, WeightedSum):
        values = [p.weight * _defined(student, target, p.objective) for p in objective.parts]
        return torch.stack(values).sum(dim=0)
    if _by_labels(objective, target.labels):
        return objective.from_logits(student, student.detach(), target.labels)
    if isinstance(target, SampledTarget):
        return _less_entropy(sampled_cross_entropy(student, target), target, objective)
    if isinstance(objective, Divergence):
        return top_k_divergence(student, target, objective, rest=rest_for(target, objective))
    if isinstance(objective, ConcreteScore):
        return objective.from_logits(student.gather(-1, target.ids.long()), target.logp.detach())
    few_student, few_teacher = classes(student, target, 1.0, rest=rest_for(target, objective))
    return expected(few_teacher.exp(), -few_student)


def partial_rows(
    student: Float[Tensor, "R V"],
    target: PartialTarget,
    objective: Objective,
    labels: Int[Tensor, " R"] | None,
) -> Float[Tensor, " R"]:
    """Value and gradient of a few rows, in place, as `Objective.rows` does against whole rows.

    Nothing of the size of the rows is made but the gradient itself, and one copy for each earlier
    part of a sum.
    """
    if isinstance(objective, WeightedSum):
        return _sum_rows(student, target, objective, labels)
    if _by_labels(objective, labels):
        nobody = row_kernels.scratch_like(student, "nobody").zero_()
        return objective.rows(student, nobody, labels)
    rest = rest_for(target, objective) if isinstance(target, TopKTarget) else None
    if rest == "truncated" or not row_kernels.all_finite(student):
        return _by_definition(student, target, objective)
    temperature = target.temperature
    if temperature != 1:
        student.div_(temperature)
    if isinstance(target, SampledTarget):
        ids = target.ids.long()
        values = row_kernels.sampled_ids_rows(student, ids, target.weights.detach())
    else:
        values = _classes_rows(student, target, objective, tail=rest == "tail_bucket")
    scaled = isinstance(objective, Divergence) and objective.scale_by_t2
    if temperature != 1:
        # The chain rule takes one factor of the temperature, scale_by_t2 gives two.
        student.mul_(temperature if scaled else 1 / temperature)
    if isinstance(target, SampledTarget):
        return _less_entropy(values, target, objective)
    return values * temperature**2 if scaled else values


def _classes_rows(
    student: Float[Tensor, "R V"], target: TopKTarget, objective: Objective, *, tail: bool
) -> Float[Tensor, " R"]:
    kept = row_kernels.Kept(ids=target.ids.long(), again=None, tail=tail)
    few = target.logp.detach().double()
    if tail:
        few = torch.cat([few, tail_of(target).double()], dim=1)
    return row_kernels.rows_against_classes(student, few, kept, _kernel(objective))


def _kernel(objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(objective, Divergence):
        return objective.divergence_rows
    if isinstance(objective, ConcreteScore):
        return lambda student, teacher: objective.rows(student, teacher, None)
    return row_kernels.teacher_cross_entropy_rows


def _sum_rows(
    student: Float[Tensor, "R V"],
    target: PartialTarget,
    objective: WeightedSum,
    labels: Int[Tensor, " R"] | None,
) -> Float[Tensor, " R"]:
    values = student.new_zeros(student.shape[0])
    total = row_kernels.scratch_like(student, f"partial_{objective.depth}_total").zero_()
    for part in objective.parts:
        name = f"partial_{objective.depth}_student"
        own = row_kernels.scratch_like(student, name).copy_(student)
        values.add_(partial_rows(own, target, part.objective, labels), alpha=part.weight)
        total.add_(own, alpha=part.weight)
    student.copy_(total)
    return values


def _by_definition(
    student: Float[Tensor, "R V"], target: PartialTarget, objective: Objective
) -> Float[Tensor, " R"]:
    with torch.enable_grad():
        scores = student.detach().clone().requires_grad_()
        values = _defined(scores, target, objective)
        (gradient,) = torch.autograd.grad(values.sum(), scores)
    student.copy_(gradient)
    return values.detach()


def _by_labels(objective: Objective, labels: Tensor | None) -> bool:
    """Whether the completion's own tokens are all that is looked at."""
    if isinstance(objective, CrossEntropy):
        return objective.labels == "tokens" or (objective.labels == "auto" and labels is not None)
    return not objective.needs_teacher


def rest_for(target: TopKTarget, objective: Objective) -> Rest:
    """What becomes of the entries that were not kept, where the target leaves it open."""
    if isinstance(objective, ConcreteScore):
        return "renormalised"
    return target.rest or "tail_bucket"


def _less_entropy(
    values: Float[Tensor, "*at"], target: SampledTarget, objective: Objective
) -> Float[Tensor, "*at"]:
    """A divergence is the cross-entropy less the teacher's entropy; a cross-entropy stays."""
    if not isinstance(objective, Divergence):
        return values
    if target.entropy is None:
        raise DataError(
            "The drawn ids come without the teacher's entropy; forward_kl must have it to be a "
            "divergence. Use cross_entropy with labels: teacher."
        )
    values = values - target.entropy.to(values.dtype)
    return values * objective.temperature**2 if objective.scale_by_t2 else values


def rows_of_target(target: PartialTarget, at: slice) -> PartialTarget:
    """The answer for some of the positions."""
    labels = None if target.labels is None else target.labels[at]
    if isinstance(target, TopKTarget):
        tail = None if target.tail_logp is None else target.tail_logp[at]
        return replace(
            target, ids=target.ids[at], logp=target.logp[at], tail_logp=tail, labels=labels
        )
    entropy = None if target.entropy is None else target.entropy[at]
    return replace(
        target, ids=target.ids[at], weights=target.weights[at], entropy=entropy, labels=labels
    )
