"""The plain twin of the fused loss: full tables of logits and autograd; slow, large, obvious."""

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.targets import (
    Head,
    HiddenTarget,
    LogitsTarget,
    PartialTarget,
    SameVocabularyTarget,
    SeveralTarget,
)
from tutelage.objectives.fused import FusedOptions
from tutelage.objectives.objective import Objective
from tutelage.objectives.partial import partial_per_token, refuse_move
from tutelage.objectives.softmax import common_size


def plain_per_token(
    hidden: Float[Tensor, "N D"],
    head: Head,
    target: SameVocabularyTarget,
    objective: Objective,
    options: FusedOptions,
) -> Float[Tensor, " N"]:
    """What `fused_per_token` computes, differentiable in the student's hidden states and head.

    Of the options, those of tiles and memory have no meaning here.
    """
    student = plain_logits(hidden, head, options.matmul_dtype)
    if isinstance(target, PartialTarget):
        refuse_move(target, options.move)
        return partial_per_token(student, target, objective)
    if isinstance(target, SeveralTarget):
        teacher = blended_logits(target, options.matmul_dtype)
    elif isinstance(target, HiddenTarget):
        with torch.no_grad():
            teacher = plain_logits(target.hidden, target.head, options.matmul_dtype)
    else:
        teacher = target.logits[..., : target.num_real]
    num_common = common_size(student.shape[-1], teacher.shape[-1])
    student, teacher = student[:, :num_common], teacher[:, :num_common].detach().clone()
    if options.move is not None:
        with torch.no_grad():
            wide = torch.promote_types(
                torch.promote_types(student.dtype, teacher.dtype), torch.float32
            )
            teacher = teacher.to(wide)
            options.move.move_rows(student.detach().to(wide), teacher, t=options.t)
    return objective.per_token(student, LogitsTarget(logits=teacher, labels=target.labels))


@torch.no_grad()
def blended_logits(target: SeveralTarget, dtype: torch.dtype | None = None) -> Float[Tensor, "N V"]:
    """Log-probabilities that several teachers come to together, over the entries all of them have.

    Source: mixtures and products of experts, Hinton 2002, doi:10.1162/089976602760128018.
    """
    scores = [plain_logits(one.hidden, one.head, dtype) for one in target.members]
    shared = min(one.shape[-1] for one in scores)
    total: Tensor | None = None
    for one, weights in zip(scores, target.weights.T, strict=True):
        # Rows that a teacher is not asked about may hold anything.
        share = weights.to(one.dtype)[:, None]
        asked = share != 0
        logp = one[:, :shared].log_softmax(dim=-1).masked_fill(~asked, 0.0)
        if target.blend == "product":
            total = share * logp if total is None else total + share * logp
        else:
            logp = (logp + share.log()).masked_fill(~asked, -torch.inf)
            total = logp if total is None else torch.logaddexp(total, logp)
    assert total is not None  # noqa: S101  there is a member
    return total.log_softmax(dim=-1)


def plain_logits(
    hidden: Float[Tensor, "N D"], head: Head, dtype: torch.dtype | None = None
) -> Float[Tensor, "N V"]:
    """Scores of the head's real entries, in fp32 or better.

    Args:
        dtype: the matrix product is in this type; None: in that of the hidden states.
    """
    dtype = dtype or hidden.dtype
    logits = hidden.to(dtype) @ head.weight[: head.num_real].to(dtype).T
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    if head.bias is not None:
        logits = logits + head.bias[: head.num_real]
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
