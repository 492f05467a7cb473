"""The loss in two spaces, a few pairs of tokens at a time."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tutelage.core.errors import ConfigError
from tutelage.core.targets import Head, HiddenTarget, OtherVocabularyTarget
from tutelage.objectives.cross_vocabulary import Bridge, DualScores, DualSpace
from tutelage.objectives.fused import FusedLoss, FusedOptions
from tutelage.objectives.fused.tiles import spans
from tutelage.objectives.plain import plain_logits

_COPIES = 4
"""Tables as large as the logits that are alive at once, about."""


def dual_space_loss(
    hidden: Float[Tensor, "N D"],
    head: Head,
    target: OtherVocabularyTarget,
    objective: DualSpace,
    *,
    token_weights: Float[Tensor, " N"],
    options: FusedOptions,
) -> FusedLoss:
    """What `groupwise_loss` is for `dual_space`; differentiable in the bridge too.

    The scores of a tile are made again on the way back, so memory does not grow with N.

    Raises:
        ConfigError: there are no projections to train.
    """
    bridge = target.bridge
    if not isinstance(bridge, Bridge):
        raise ConfigError(
            "The objective is DualSpace, and the student has no bridge to the teacher; it must "
            "have one. Set student.bridge = Bridge(student's width, teacher's width)."
        )
    mine, theirs = _pairs(target)
    # Weight 0 means left out, whatever stands there.
    kept = token_weights[mine] != 0
    mine, theirs = mine[kept], theirs[kept]
    labels, weights = target.labels[mine], token_weights.detach()[mine]
    dtype = options.matmul_dtype
    still = _held_still(head)
    teacher = HiddenTarget(
        hidden=target.teacher.hidden.detach(), head=_held_still(target.teacher.head)
    )

    def tile(own: Tensor, other: Tensor, at: Tensor) -> Tensor:
        other = other.to(bridge.to_student.weight.dtype)
        return objective.values(
            DualScores(
                student=plain_logits(own, head, dtype),
                projected_teacher=plain_logits(bridge.to_student(other), still, dtype),
                teacher=plain_logits(other, teacher.head, dtype),
                projected_student=plain_logits(
                    bridge.to_teacher(own.to(bridge.to_teacher.weight.dtype)), teacher.head, dtype
                ),
                student_labels=at,
            )
        )

    num_entries = head.weight.shape[0] + teacher.head.weight.shape[0]
    size = options.tile_tokens or max(options.memory_bytes // (4 * _COPIES * num_entries), 4)
    values = [
        checkpoint(
            tile, hidden[mine[a:b]], teacher.hidden[theirs[a:b]], labels[a:b], use_reentrant=False
        )
        for a, b in spans(len(mine), size)
    ]
    # Nothing to compare must still let every weight be differentiated, for the other ranks' sake.
    nothing = sum((p.sum() * 0 for p in bridge.parameters()), hidden.sum() * 0)
    found = torch.cat(values) if values else hidden.new_zeros(0)
    per_token = found.new_zeros(len(hidden)).index_copy(0, mine, found.detach())
    return FusedLoss(loss=(found * weights).sum() + nothing, per_token=per_token)


def _held_still(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach()
    return replace(head, weight=head.weight.detach(), bias=bias)


def _pairs(
    target: OtherVocabularyTarget,
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Rows of groups of one token on each side, both of them the same word."""
    groups, words = target.groups, target.words
    assert target.teacher.labels is not None  # noqa: S101  a teacher of its own words has them
    single = (groups.student_count == 1) & (groups.teacher_count == 1)
    mine, theirs = groups.student_first[single], groups.teacher_first[single]
    pair_of = torch.full((words.num_student,), -1, device=mine.device)
    pair_of[words.student_ids] = words.teacher_ids
    same = pair_of[target.labels[mine]] == target.teacher.labels[theirs]
    return mine[same], theirs[same]
