"""What a step's routing was like: a few numbers for the log, and tables for the report."""

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from tutelage.routing import (
    expert_specialisation,
    max_violation,
    normalised_mutual_information,
    num_dead,
)
from tutelage.training.routers.settings import RewardBias, RoutingSettings
from tutelage.training.routers.tally import Tally

_DIGITS = 5


@final
@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The routers after one move."""

    load: Float[Tensor, "layer E"]
    """Each expert's share of the step's assignments."""
    advantage: Float[Tensor, "layer E"]
    """The mean advantage of what it was given."""
    bias: Float[Tensor, "layer E"]
    shift: float | None
    """How far routing has moved since it was last measured; None where it was not."""

    def to_json(self) -> dict[str, Any]:
        """Rounded, for a file with a line a step."""
        return {
            name: [[round(x, _DIGITS) for x in row] for row in getattr(self, name).tolist()]
            for name in ("load", "advantage", "bias")
        }


def numbers_of(tally: Tally, now: Snapshot, settings: RoutingSettings) -> dict[str, float]:
    """For the log, all of one size however many layers and experts there are.

    `max_violation` is the mean over layers and `max_violation_worst` the worst of them;
    `dead_experts` are counted over all layers, and `router_bias` is the largest distance of a
    bias from its layer's mean.
    """
    violation = max_violation(now.load)
    numbers = {
        "max_violation": float(violation.mean()),
        "max_violation_worst": float(violation.max()),
        "highest_load": float(now.load.max()),
        "dead_experts": float(num_dead(tally.counts).sum()),
        "router_entropy": float(tally.entropy / tally.tokens.clamp(min=1)),
    }
    if settings.moves_bias:
        spread = now.bias - now.bias.mean(dim=-1, keepdim=True)
        numbers["router_bias"] = float(spread.abs().max())
    if bool(tally.judged.any()):
        numbers["expert_advantage"] = float(now.advantage.abs().max())
    if isinstance(settings.balance, RewardBias) and settings.balance.alarm is not None:
        numbers["router_alarms"] = float((violation > settings.balance.alarm).sum())
    if now.shift is not None:
        numbers["probed_shift"] = now.shift
    if tally.classes.shape[-1] and bool(tally.classes.any()):
        numbers["expert_alignment"] = float(normalised_mutual_information(tally.classes).mean())
        numbers["expert_specialisation"] = float(expert_specialisation(tally.classes).mean())
    return numbers
