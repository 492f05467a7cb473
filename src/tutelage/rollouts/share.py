"""How large a part of the rows is treated one way, and how that moves over a run."""

from collections.abc import Mapping
from typing import Any, final


@final
class ShareClock:
    """A share between 0 and 1 that stays, or goes in a straight line over the run.

        share = start + (end - start) * steps done / steps of the run

    The trainer moves it once after each optimiser step, on all ranks alike; the end would be
    reached on the step after the last, as with a learning rate.

    Args:
        name: what the log calls it.
        end: None stays at the start.
    """

    def __init__(self, name: str, start: float, end: float | None = None) -> None:
        self.name = name
        self.start = start
        self.end = start if end is None else end
        self._share = start

    @property
    def share(self) -> float:
        """For the coming step."""
        return self._share

    def move(self, *, done: float) -> None:
        """Go on to where the share stands when this part of the run's steps is done."""
        self._share = self.start + (self.end - self.start) * done

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        return {"share": self._share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._share = float(state["share"])
