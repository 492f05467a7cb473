"""What one optimiser step's tokens did in the routers, added up over micro-batches and ranks."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.models.routers import Routed
from tutelage.routing import (
    advantage_sums,
    assignment_counts,
    expert_class_counts,
    router_entropy,
)


@final
@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums in float64, so that no order of adding shows. Only trained tokens are in them."""

    counts: Float[Tensor, "layer E"]
    """Assignments of each expert."""
    judged: Float[Tensor, "layer E"]
    """Those of tokens that have an advantage."""
    advantages: Float[Tensor, "layer E"]
    """Their advantages, added up."""
    entropy: Float[Tensor, ""]
    """Of the routers, summed over tokens, averaged over layers."""
    tokens: Float[Tensor, ""]
    classes: Float[Tensor, "layer E C"]
    """Assignments by kind of text."""

    @classmethod
    def empty(cls, num_layers: int, num_experts: int, num_classes: int) -> "Tally":
        """Nothing yet."""
        zeros = torch.zeros(num_layers, num_experts, dtype=torch.float64)
        none = torch.zeros((), dtype=torch.float64)
        return cls(
            counts=zeros,
            judged=zeros,
            advantages=zeros,
            entropy=none,
            tokens=none,
            classes=torch.zeros(num_layers, num_experts, num_classes, dtype=torch.float64),
        )

    def __add__(self, other: "Tally") -> "Tally":
        pairs = zip(self._parts(), other._parts(), strict=True)
        return Tally(**{name: mine + theirs for (name, mine), (_, theirs) in pairs})

    def flat(self) -> Float[Tensor, " X"]:
        """All of it as one vector, for one sum over ranks."""
        return torch.cat([part.flatten() for _, part in self._parts()])

    def filled(self, flat: Float[Tensor, " X"]) -> "Tally":
        """A tally of this one's shape with these numbers."""
        sizes = [part.numel() for _, part in self._parts()]
        pieces = zip(self._parts(), flat.cpu().split(sizes), strict=True)
        return Tally(**{name: piece.reshape(part.shape) for (name, part), piece in pieces})

    def _parts(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, name)) for name in Tally.__dataclass_fields__]


@torch.no_grad()
def tally_of(
    routed: Routed, batch: TokenBatch, *, classes: Int[Tensor, " B"] | None, num_classes: int
) -> Tally:
    """What the tokens that are trained did: those that predict them chose the experts.

    Args:
        classes: the kind of text of each row, -1 where it has none.
    """
    trained = batch.loss_mask
    places = batch.student.predicts[trained]
    num_experts = routed.probabilities[0].shape[-1]
    advantages = batch.advantages
    if advantages is None:
        advantages = torch.full_like(batch.labels, torch.nan, dtype=torch.float32)
    advantages = advantages[trained]
    judged: Bool[Tensor, " L"] = advantages.isfinite()
    of_token = torch.full_like(batch.row_of, -1) if classes is None else classes[batch.row_of]
    chosen = [ids[places] for ids in routed.chosen]

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).cpu()

    entropies = [router_entropy(p[places]).double().sum() for p in routed.probabilities]
    return Tally(
        counts=stacked([assignment_counts(c, num_experts=num_experts) for c in chosen]),
        judged=stacked(
            [assignment_counts(c, num_experts=num_experts, counted=judged) for c in chosen]
        ),
        advantages=stacked(
            [advantage_sums(c, advantages, num_experts=num_experts, counted=judged) for c in chosen]
        ),
        entropy=stacked(entropies).mean(),
        tokens=trained.sum().double().cpu(),
        classes=stacked(
            [
                expert_class_counts(
                    c, of_token[trained], num_experts=num_experts, num_classes=num_classes
                )
                for c in chosen
            ]
        ),
    )
