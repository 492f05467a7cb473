"""Rollouts that are trained on more than once: a bounded buffer of what a model has written."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, final

import torch
from typing_extensions import override

from tutelage.core.errors import ConfigError
from tutelage.core.records import Rollout
from tutelage.rollouts.placed import refuse_changes
from tutelage.rollouts.share import ShareClock
from tutelage.rollouts.source import RolloutSource
from tutelage.rollouts.written import ModelRollouts

TrainOn = Literal["fresh", "buffer"]


@final
class ReplayRollouts(RolloutSource):
    """Writes a share of the rows afresh and takes the others from what was written before.

    A draw for each place decides whether its row is written now. Written rows go into the buffer;
    when it is full, the oldest leave. With `train_on`

        fresh    a row written now is trained on now, and the other rows of the step are drawn
                 from the buffer as it was before the step (DistiLLM);
        buffer   the whole step is drawn from the buffer, what was written now included, no row
                 twice where there are enough (ImitKD writes afresh every step: a share of 1).

    While the buffer is empty, every row is written. Each rank has its part of the buffer: what
    it draws again is what it has written itself, so replayed rows do depend on the number of
    ranks. The buffer is in the checkpoint.

    Source: Lin et al. 2020 (ImitKD), arXiv:2009.07253; Ko et al. 2024 (DistiLLM),
    arXiv:2402.03898, where the fresh share falls linearly to 0.

    Args:
        num_rows: how many rollouts the buffer holds, over all ranks.
        clock: where the fresh share stands.
    """

    def __init__(
        self,
        written: ModelRollouts,
        *,
        num_rows: int,
        clock: ShareClock,
        train_on: TrainOn = "fresh",
    ) -> None:
        order = written.order
        if num_rows < order.num_ranks:
            raise ConfigError(
                f"rollouts.buffer_rows is {num_rows}; it must be at least the number of "
                f"processes, {order.num_ranks}, for each keeps a part. Raise it."
            )
        self._written = written
        self._order = order
        self._clock = clock
        self._train_on = train_on
        self._buffer: deque[tuple[int, Rollout]] = deque(maxlen=num_rows // order.num_ranks)

    @property
    @override
    def clocks(self) -> Sequence[ShareClock]:
        return (self._clock,)

    @property
    @override
    def num_generated(self) -> int:
        return self._written.num_generated

    @property
    @override
    def numbers(self) -> Mapping[str, float]:
        return self._written.numbers

    @property
    def num_kept(self) -> int:
        """Rollouts in this rank's part of the buffer."""
        return len(self._buffer)

    @override
    def __len__(self) -> int:
        return len(self._written)

    @override
    def take(self, num_rows: int) -> list[Rollout]:
        places = self._written.claim(num_rows)
        before = list(self._buffer)
        fresh = [place for place in places if not before or self._is_fresh(place)]
        written = list(zip(fresh, self._written.at(fresh), strict=True))
        self._buffer.extend(written)
        if self._train_on == "buffer":
            return self._drawn(places)
        found = dict(written)
        for place in places:
            if place not in found:
                generator = self._order.generator("replayed", place)
                chosen = int(torch.randint(len(before), (), generator=generator))
                found[place] = before[chosen][1]
        return [found[place] for place in places]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "written": self._written.state_dict(),
            "clock": self._clock.state_dict(),
            "buffer": [_packed(place, rollout) for place, rollout in self._buffer],
            **self._identity(),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._written.load_state_dict(state["written"])
        refuse_changes(self._identity(), state)
        self._clock.load_state_dict(state["clock"])
        self._buffer.clear()
        self._buffer.extend(self._unpacked(packed) for packed in state["buffer"])

    def _identity(self) -> dict[str, Any]:
        return {
            "buffer_rows": self._buffer.maxlen,
            "train_on": self._train_on,
            self._clock.name: self._clock.start,
            f"final_{self._clock.name}": self._clock.end,
        }

    def _is_fresh(self, place: int) -> bool:
        generator = self._order.generator("fresh", place)
        drawn = torch.rand((), generator=generator, dtype=torch.float64)
        return bool(drawn < self._clock.share)

    def _drawn(self, places: range) -> list[Rollout]:
        """As many rows as places, out of the buffer; in rounds, where it holds too few."""
        generator = self._order.generator("drawn", places.start)
        chosen: list[int] = []
        while len(chosen) < len(places):
            chosen += torch.randperm(len(self._buffer), generator=generator).tolist()
        return [self._buffer[index][1] for index in chosen[: len(places)]]

    def _unpacked(self, packed: Mapping[str, Any]) -> tuple[int, Rollout]:
        place = int(packed["place"])
        rollout = Rollout(
            prompt=self._written.prompt_at(place),
            completion_ids=tuple(packed["completion_ids"]),
            source=self._written.source,
            truncated=packed["truncated"],
            sampled_logp=tuple(packed["sampled_logp"]),
        )
        if packed["trained"] is not None:
            rollout = replace(rollout, trained=tuple(packed["trained"]))
        return place, rollout


def _packed(place: int, rollout: Rollout) -> dict[str, Any]:
    """Plain values; the prompt is found again by the place."""
    return {
        "place": place,
        "completion_ids": list(rollout.completion_ids),
        "trained": None if rollout.trained is None else list(rollout.trained),
        "truncated": rollout.truncated,
        "sampled_logp": list(rollout.sampled_logp or ()),
    }
