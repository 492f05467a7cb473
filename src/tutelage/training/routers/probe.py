"""How far routing moves while a student trains, on the same rows each time."""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.records import View
from tutelage.models.causal_lm import CausalLM
from tutelage.models.routers import RouterTap
from tutelage.routing import routing_shift


@final
class Probe:
    """Asks the routers about a few rows every so often, in evaluation mode and without gradient.

    Args:
        every: updates between two measurements.
        dtype: what the student computes in while it trains; None: what its weights are kept in.
    """

    def __init__(
        self, lm: CausalLM, view: View, *, every: int, dtype: torch.dtype | None = None
    ) -> None:
        self._lm, self._view, self._every, self._dtype = lm, view, every, dtype
        self._before: list[Float[Tensor, "L E"]] | None = None

    def begin(self) -> None:
        """Measure where routing starts, unless that is known."""
        if self._before is None:
            self._before = self._routing()

    def after(self, num_moves: int) -> float | None:
        """The mean shift over the rows' tokens since the last measurement, where one is due."""
        if num_moves % self._every or self._before is None:
            return None
        now = self._routing()
        shift = float(routing_shift(now, self._before).mean())
        self._before = now
        return shift

    @torch.no_grad()
    def _routing(self) -> list[Float[Tensor, "L E"]]:
        was_training = self._lm.training
        device, half = self._lm.device.type, self._dtype is not None
        self._lm.eval()
        try:
            with (
                RouterTap(self._lm) as tap,
                torch.autocast(device, dtype=self._dtype, enabled=half),
            ):
                self._lm.hidden(self._view)
        finally:
            self._lm.train(was_training)
        return list(tap.of(self._view).probabilities)

    def state_dict(self) -> dict[str, Any]:
        """What the next measurement is compared with."""
        return {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        before = state["before"]
        self._before = None if before is None else [p.to(self._lm.device) for p in before]
