"""The plain twin of the fused loss: full tables of logits and autograd; slow, large, obvious."""

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.targets import Head, HiddenTarget, LogitsTarget, PartialTarget, Target
from tutelage.objectives.fused import FusedOptions
from tutelage.objectives.objective import Objective
from tutelage.objectives.partial import partial_per_token, refuse_move
from tutelage.objectives.softmax import common_size


def plain_per_token(
    hidden: Float[Tensor, "N D"],
    head: Head,
    target: Target,
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
    if isinstance(target, HiddenTarget):
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
