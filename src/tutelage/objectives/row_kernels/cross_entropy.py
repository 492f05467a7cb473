"""Row kernels of cross-entropy, with ids or the teacher's distribution, and of sampled ids."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.objectives.row_kernels.compared import dot, log_softmax_, scratch_like, softmax_into


def token_cross_entropy_rows(
    student: Float[Tensor, "R V"], labels: Int[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Gradient q - 1 at the label."""
    ids = labels.long()[:, None]
    at_label, top = student.gather(1, ids)[:, 0].double(), student.amax(dim=-1).double()
    softmax_into(student, student)
    values = (top - student.amax(dim=-1).double().log()) - at_label
    student.scatter_add_(1, ids, student.new_full((), -1.0).expand(ids.shape))
    return values.to(student.dtype)


def teacher_cross_entropy_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """Gradient q - p."""
    log_softmax_(student)
    softmax_into(teacher, teacher)
    values = -dot(teacher, student)
    q = scratch_like(student, "p")
    softmax_into(q, student)
    torch.sub(q, teacher, out=student)
    return values


def sampled_token_rows(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], labels: Int[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Value log q - log p at the label; gradient value * (1 at the label - q)."""
    ids = labels.long()[:, None]
    values = _logp_at(student, ids) - _logp_at(teacher, ids)
    student.neg_().scatter_add_(1, ids, student.new_ones(()).expand(ids.shape))
    values = values.to(student.dtype)
    student.mul_(values[:, None])
    return values


def sampled_ids_rows(
    student: Float[Tensor, "R V"], ids: Int[Tensor, "R S"], weights: Float[Tensor, "R S"]
) -> Float[Tensor, " R"]:
    """Minus the weighted log-probability of given ids; gradient (sum of weights) * q - weights."""
    at, top = student.gather(1, ids).double(), student.amax(dim=-1).double()
    softmax_into(student, student)
    log_sum_exp = top - student.amax(dim=-1).double().log()
    total = weights.double().sum(dim=-1)
    values = total * log_sum_exp - (weights.double() * at).sum(dim=-1)
    student.mul_(total.to(student.dtype)[:, None])
    student.scatter_add_(1, ids, -weights.to(student.dtype))
    return values.to(student.dtype)


def _logp_at(scores: Float[Tensor, "R V"], ids: Int[Tensor, "R 1"]) -> Float[Tensor, " R"]:
    """The log-probability of each row's id, in fp64; the scores become probabilities."""
    at, top = scores.gather(1, ids)[:, 0].double(), scores.amax(dim=-1).double()
    softmax_into(scores, scores)
    return at - (top - scores.amax(dim=-1).double().log())
