"""Rollouts from finished rows, in seeded epochs, the same global order on every process."""

from collections.abc import Sequence
from typing import final

from typing_extensions import override

from tutelage.core.records import Rollout
from tutelage.rollouts.placed import Order, PlacedRollouts, fingerprint_of


@final
class DatasetRollouts(PlacedRollouts):
    """The same rows every epoch, each epoch in an order that follows from the seed alone.

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
        self._rollouts = tuple(rollouts)
        ids = (
            (row.prompt.student_ids, row.prompt.teacher_ids, row.completion_ids, row.trained)
            for row in self._rollouts
        )
        order = Order(seed=seed, shuffle=shuffle, rank=rank, num_ranks=num_ranks)
        super().__init__(len(self._rollouts), order, fingerprint=fingerprint_of(ids))

    @override
    def at(self, places: Sequence[int]) -> list[Rollout]:
        return [self._rollouts[self.row_at(place)] for place in places]
