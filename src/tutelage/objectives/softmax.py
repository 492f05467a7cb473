"""Scores to log-probabilities in fp32 or better, and what two vocabularies have in common."""

import torch
from jaxtyping import Float
from torch import Tensor


def upcast(scores: Float[Tensor, "*at V"]) -> Float[Tensor, "*at V"]:
    """The same numbers in fp32; fp64 passes through."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def log_softmax_at(
    logits: Float[Tensor, "*at V"], temperature: float = 1.0
) -> Float[Tensor, "*at V"]:
    """Natural-log probabilities of softmax(logits / temperature), in fp32 or better."""
    scores = upcast(logits)
    return (scores if temperature == 1 else scores / temperature).log_softmax(dim=-1)


def expected(p: Float[Tensor, "*at V"], values: Float[Tensor, "*at V"]) -> Float[Tensor, "*at"]:
    """sum_v p(v) * values(v), where an entry of no mass counts 0 whatever its value.

    Chosen before the product, so that 0 * inf reaches neither the value nor the gradient.
    """
    return expected_terms(p, values).sum(dim=-1)


def expected_terms(
    p: Float[Tensor, "*at V"], values: Float[Tensor, "*at V"]
) -> Float[Tensor, "*at V"]:
    """The terms of `expected`, one for each entry."""
    return p * torch.where(p > 0, values, 0.0)


def common_size(student_size: int, teacher_size: int, num_real: int | None = None) -> int:
    """How many leading vocabulary entries mean the same to both sides.

    Models of one family pad their heads differently. What lies behind the common entries is cut
    off on both sides alike: filling it with zeros would give the padding a probability.
    """
    smaller = min(student_size, teacher_size)
    return smaller if num_real is None else min(smaller, num_real)


def excluded_mass_of_logits(
    logits: Float[Tensor, "*at V"], num_common: int
) -> Float[Tensor, "*at"]:
    """The probability a model gives to entries behind the common ones; no gradient.

    Worth a line in every report: what is excluded is never trained.
    """
    with torch.no_grad():
        p = log_softmax_at(logits).exp()
        return p[..., num_common:].sum(dim=-1)
