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
from tutelage.routing import expert_load, max_violation, num_dead
from tutelage.students import Upcycled, all_experts, counted
from tutelage.teachers import LiveTeacher

EXACT = 1e-5
"""Logits of float32 models that differ by less are equal, up to the order of additions."""
_SLAB_TOKENS = 128
REMEMBER_BYTES = 2**29
"""What a model that is asked about the same rows again may keep of its answers."""


@final
@dataclass(frozen=True, kw_only=True)
class Routed:
    """What a mixture of experts does on the calibration rows, as its routers choose."""

    report: DivergenceReport
    """Against the dense model."""
    load: Float[Tensor, "layers E"]
    """Share of each layer's choices that fall on each expert; a row adds up to 1."""

    @property
    def max_violation(self) -> list[float]:
        """For each layer, by how much of the mean the busiest expert is above it (MaxVio)."""
        return max_violation(self.load).tolist()

    @property
    def num_idle(self) -> int:
        """Experts of all layers that no token has chosen."""
        return int(num_dead(self.load).sum())


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
    routed: Routed
    """As the routers choose."""

    @property
    def is_exact(self) -> bool:
        """Whether the two are equal with every expert at work, as far as float32 goes."""
        return self.largest_difference < EXACT * max(1.0, self.largest_logit)

    def to_json(self) -> Mapping[str, Any]:
        """All of it, as fidelity.json holds it."""
        return {
            "all_experts_equal_gates": self.whole.numbers(),
            "largest_logit_difference": self.largest_difference,
            "largest_logit": self.largest_logit,
            "as_routed": self.routed.report.numbers(),
            "load": self.routed.load.tolist(),
            "max_violation": self.routed.max_violation,
            "num_idle_experts": self.routed.num_idle,
        }


def routed(lm: CausalLM, teacher: LiveTeacher, batches: Sequence[TokenBatch]) -> Routed:
    """Measure a mixture of experts as it is."""
    with counted(lm) as counts:
        report = evaluate_divergence(lm, teacher, batches)
    return Routed(report=report, load=expert_load(counts.float()))


def fidelity_of(
    made: Upcycled, dense: CausalLM, batches: Sequence[TokenBatch], *, equal_gate: float
) -> Fidelity:
    """Measure the mixture of experts against its dense model.

    Args:
        equal_gate: the gate at which all experts together are the dense feed-forward part.
    """
    teacher = LiveTeacher(dense, remember_bytes=REMEMBER_BYTES)
    with all_experts(made.lm, equal_gate):
        whole = evaluate_divergence(made.lm, teacher, batches)
        largest, scale = _largest_difference(made.lm, dense, batches[:1])
    return Fidelity(
        whole=whole,
        largest_difference=largest,
        largest_logit=scale,
        routed=routed(made.lm, teacher, batches),
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
