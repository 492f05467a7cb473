"""Where the rows of a step come from, as an interface."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.core.records import Rollout
from tutelage.rollouts.share import ShareClock


class RolloutSource(ABC):
    """An endless supply of rollouts whose place in the supply can be saved and restored."""

    @abstractmethod
    def take(self, num_rows: int) -> list[Rollout]:
        """This process's next rows: `num_rows` of them, always.

        All processes call this the same number of times with the same `num_rows`; together they
        receive what a single process would have received for `num_rows` times as many.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The place in the supply, as plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a place that `state_dict` returned, with no row lost and none repeated.

        Raises:
            CheckpointError: the place belongs to another supply.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Rows in one epoch, over all processes."""

    @property
    def clocks(self) -> Sequence[ShareClock]:
        """What the trainer moves once after each optimiser step; saved by `state_dict`."""
        return ()

    @property
    def numbers(self) -> Mapping[str, float]:
        """More for the log about the rows of the last `take`, in this process."""
        return {}

    @property
    def num_generated(self) -> int:
        """Tokens that models have written for this source, in this process."""
        return 0
