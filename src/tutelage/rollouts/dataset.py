"""Rollouts from finished rows, in seeded epochs, the same global order on every process."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from typing_extensions import override

from tutelage.core.errors import CheckpointError, DataError
from tutelage.core.records import Rollout
from tutelage.core.seeds import seed_for
from tutelage.rollouts.source import RolloutSource


@final
class DatasetRollouts(RolloutSource):
    """The same rows every epoch, each epoch in an order that follows from the seed alone.

    All processes walk one global order together: with R processes, a call takes the next
    R * num_rows rows and this process keeps the part that belongs to its rank. The last rows of an
    epoch and the first of the next share a call when they must, so no row is ever left out.

    Args:
        rollouts: the rows of one epoch, all of them, on every process.
        seed: where the orders come from.
        shuffle: False walks the rows as they lie, every epoch.
        rank: this process, from 0.
        num_ranks: how many processes take part.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if not rollouts:
            raise DataError(
                "rollouts is empty; it must hold at least one row. "
                "Check the data file and the limits that drop rows."
            )
        self._rollouts = tuple(rollouts)
        self._seed = seed
        self._shuffle = shuffle
        self._rank = rank
        self._num_ranks = num_ranks
        self._num_taken = 0
        self._fingerprint = _fingerprint(self._rollouts)
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def epoch(self) -> float:
        """How many times the rows have been walked, over all processes."""
        return self._num_taken / len(self)

    @override
    def __len__(self) -> int:
        return len(self._rollouts)

    @override
    def take(self, num_rows: int) -> list[Rollout]:
        start = self._num_taken + self._rank * num_rows
        rows = [self._rollouts[self._row_at(place)] for place in range(start, start + num_rows)]
        self._num_taken += self._num_ranks * num_rows
        return rows

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "num_taken": self._num_taken,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "fingerprint": self._fingerprint,
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self.state_dict()
        for name in ("seed", "shuffle", "fingerprint"):
            if state[name] != own[name]:
                raise CheckpointError(
                    f"rollouts.{name} is {own[name]}; it must be {state[name]} to continue this "
                    "run. Restore the setting and the data, or start a new run in another folder."
                )
        self._num_taken = int(state["num_taken"])

    def _row_at(self, place: int) -> int:
        epoch, offset = divmod(place, len(self))
        if not self._shuffle:
            return offset
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_for(self._seed, "order", epoch))
            self._order = (epoch, torch.randperm(len(self), generator=generator).tolist())
        return self._order[1][offset]


def _fingerprint(rollouts: Sequence[Rollout]) -> str:
    """A hash of every row's ids, so that a run does not go on with other data unnoticed."""
    digest = hashlib.sha256()
    for row in rollouts:
        ids = (row.prompt.student_ids, row.prompt.teacher_ids, row.completion_ids, row.trained)
        digest.update(repr(ids).encode())
    return digest.hexdigest()[:16]
