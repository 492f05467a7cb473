"""One global order of places, walked by all processes together; each place has its row."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from typing_extensions import override

from tutelage.core.errors import CheckpointError, DataError
from tutelage.core.records import Rollout
from tutelage.core.seeds import seed_for
from tutelage.rollouts.source import RolloutSource


@final
@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order rows come, and which of them are this process's."""

    seed: int = 0
    """Where the orders of the epochs come from, and everything that is drawn for a place."""
    shuffle: bool = True
    """False walks the rows as they lie, every epoch."""
    rank: int = 0
    """This process, from 0."""
    num_ranks: int = 1
    """How many processes take part."""

    def generator(self, *names: str | int) -> torch.Generator:
        """A fresh stream of numbers for these names: the same on every rank, at any time."""
        return torch.Generator().manual_seed(seed_for(self.seed, *names))


class PlacedRollouts(RolloutSource):
    """Seeded epochs of the same rows; nothing but the place in the order is remembered.

    With R processes, a call of `take` claims the next R * num_rows places, and this process keeps
    the part that belongs to its rank. The last rows of an epoch and the first of the next share a
    call when they must, so no row is ever left out.

    Args:
        num_rows: rows of one epoch.
        fingerprint: of the rows, so that a run does not go on with others unnoticed.
    """

    def __init__(self, num_rows: int, order: Order, *, fingerprint: str) -> None:
        if not num_rows:
            raise DataError(
                "rollouts is empty; it must hold at least one row. "
                "Check the data file and the limits that drop rows."
            )
        self.order = order
        self.fingerprint = fingerprint
        self._num_rows = num_rows
        self._num_taken = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])

    @abstractmethod
    def at(self, places: Sequence[int]) -> list[Rollout]:
        """The rollouts of these places, each whatever the others are."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else must be the same for a run to go on, plain values by the setting's name."""
        return {}

    @property
    def epoch(self) -> float:
        """How many times the rows have been walked, over all processes."""
        return self._num_taken / len(self)

    @override
    def __len__(self) -> int:
        return self._num_rows

    @override
    def take(self, num_rows: int) -> list[Rollout]:
        return self.at(self.claim(num_rows))

    def claim(self, num_rows: int) -> range:
        """This process's next places; those of the other ranks are passed over too."""
        start = self._num_taken + self.order.rank * num_rows
        self._num_taken += self.order.num_ranks * num_rows
        return range(start, start + num_rows)

    def row_at(self, place: int) -> int:
        """The row whose turn it is at this place."""
        epoch, offset = divmod(place, len(self))
        if not self.order.shuffle:
            return offset
        if self._shuffled[0] != epoch:
            generator = self.order.generator("order", epoch)
            self._shuffled = (epoch, torch.randperm(len(self), generator=generator).tolist())
        return self._shuffled[1][offset]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"num_taken": self._num_taken, **self._identity()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        refuse_changes(self._identity(), state)
        self._num_taken = int(state["num_taken"])

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.order.seed,
            "shuffle": self.order.shuffle,
            "fingerprint": self.fingerprint,
            **self.settings,
        }


def refuse_changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Compare what a source is with what the source of a checkpoint was.

    Raises:
        CheckpointError: naming the setting in which they differ.
    """
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise CheckpointError(
                f"rollouts.{name} is {value}; it must be {theirs.get(name)} to continue this "
                "run. Restore the setting and the data, or start a new run in another folder."
            )


def fingerprint_of(rows: Iterable[tuple[object, ...]]) -> str:
    """A hash of every row's ids."""
    digest = hashlib.sha256()
    for ids in rows:
        digest.update(repr(ids).encode())
    return digest.hexdigest()[:16]
