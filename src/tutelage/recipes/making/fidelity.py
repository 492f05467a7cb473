"""How near a new mixture of experts is to the dense model that it was made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.evaluation import DivergenceReport, evaluate_divergence
from tutelage.models import CausalLM
from tutelage.students import Upcycled, all_experts, counted
from tutelage.teachers import LiveTeacher

EXACT = 1e-5
"""Logits of float32 models that differ by less are equal, up to the order of additions."""
_SLAB_TOKENS = 128
_REMEMBER_BYTES = 2**29


@final
@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What was measured on the calibration rows."""

    whole: DivergenceReport
    """Against the dense model, with every expert at work and equal gates."""
    largest_difference: float
    """The largest difference of two logits then, in the first batch of rows."""
    largest_logit: float
    """The largest of the dense model's, for scale."""
    routed: DivergenceReport
    """Against the dense model, as the routers choose."""
    load: Float[Tensor, "layers E"]
    """Share of each layer's choices that fall on each expert; a row adds up to 1."""

    @property
    def is_exact(self) -> bool:
        """Whether the two are equal with every expert at work, as far as float32 goes."""
        return self.largest_difference < EXACT * max(1.0, self.largest_logit)

    @property
    def max_violation(self) -> list[float]:
        """For each layer, by how much of the mean the busiest expert is above it (MaxVio)."""
        return (self.load.amax(dim=1) * self.load.shape[1] - 1).tolist()

    @property
    def num_idle(self) -> int:
        """Experts of all layers that no token has chosen."""
        return int((self.load == 0).sum())

    def to_json(self) -> Mapping[str, Any]:
        """All of it, as fidelity.json holds it."""
        return {
            "all_experts_equal_gates": self.whole.numbers(),
            "largest_logit_difference": self.largest_difference,
            "largest_logit": self.largest_logit,
            "as_routed": self.routed.numbers(),
            "load": self.load.tolist(),
            "max_violation": self.max_violation,
            "num_idle_experts": self.num_idle,
        }


def fidelity_of(
    made: Upcycled, dense: CausalLM, batches: Sequence[TokenBatch], *, equal_gate: float
) -> Fidelity:
    """Measure the mixture of experts against its dense model.

    Args:
        equal_gate: the gate at which all experts together are the dense feed-forward part.
    """
    teacher = LiveTeacher(dense, remember_bytes=_REMEMBER_BYTES)
    with all_experts(made.lm, equal_gate):
        whole = evaluate_divergence(made.lm, teacher, batches)
        largest, scale = _largest_difference(made.lm, dense, batches[:1])
    with counted(made.lm) as counts:
        routed = evaluate_divergence(made.lm, teacher, batches)
    return Fidelity(
        whole=whole,
        largest_difference=largest,
        largest_logit=scale,
        routed=routed,
        load=counts / counts.sum(dim=1, keepdim=True).clamp(min=1),
    )


@torch.no_grad()
def _largest_difference(
    one: CausalLM, other: CausalLM, batches: Sequence[TokenBatch]
) -> tuple[float, float]:
    """Over all tokens and entries, a slab of tokens at a time: the difference, and the size."""
    largest = scale = 0.0
    for batch in batches:
        pairs = zip(
            one.hidden(batch.student).split(_SLAB_TOKENS),
            other.hidden(batch.student).split(_SLAB_TOKENS),
            strict=True,
        )
        for ours, theirs in pairs:
            expected = _logits(other, theirs)
            difference = (_logits(one, ours) - expected).abs()
            largest = max(largest, float(difference.max()))
            scale = max(scale, float(expected.abs().max()))
    return largest, scale


def _logits(lm: CausalLM, hidden: Float[Tensor, "L D"]) -> Float[Tensor, "L V"]:
    head = lm.head
    return torch.nn.functional.linear(hidden, head.weight, head.bias).float()
