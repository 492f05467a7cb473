"""Losses of the routers and experts that join the objective's."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.models.routers import Routed
from tutelage.routing import activity_loss, importance_cv_squared, switch_loss
from tutelage.training.routers.settings import (
    BalanceSettings,
    ExpertTargetSettings,
    ImportanceLoss,
    SwitchLoss,
)


def balance_term(settings: BalanceSettings) -> Callable[[Routed], Float[Tensor, ""]] | None:
    """The auxiliary loss over all tokens that were read, weighed; None where there is none."""
    match settings:
        case SwitchLoss(weight=weight):

            def switch(routed: Routed) -> Float[Tensor, ""]:
                # Transformers lays the layers end to end before it takes means.
                return weight * switch_loss(
                    torch.cat(routed.probabilities), torch.cat(routed.chosen)
                )

            return switch
        case ImportanceLoss(weight=weight):

            def importance(routed: Routed) -> Float[Tensor, ""]:
                each = [importance_cv_squared(p) for p in routed.probabilities]
                return weight * torch.stack(each).mean()

            return importance
        case _:
            return None


@final
class Activities:
    """Hears how active experts are, and says how far that is from where it should be."""

    def __init__(self, targets: Float[Tensor, "layer E"], settings: ExpertTargetSettings) -> None:
        self._targets = targets
        self._settings = settings
        self._heard: dict[int, tuple[Tensor, Tensor]] = {}

    def clear(self) -> None:
        """Before a forward pass."""
        self._heard.clear()

    def acted(self, layer: int, means: Float[Tensor, " E"], heard: Int[Tensor, " E"]) -> None:
        """Experts have been active; they call this themselves."""
        self._heard[layer] = means, heard

    def loss(self) -> Float[Tensor, ""]:
        """The mean over layers of the divergence from the targets, weighed."""
        each = [
            activity_loss(
                means,
                self._targets[layer].to(means),
                temperature=self._settings.temperature,
                active=heard > 0,
            )
            for layer, (means, heard) in sorted(self._heard.items())
        ]
        return self._settings.weight * torch.stack(each).mean()
