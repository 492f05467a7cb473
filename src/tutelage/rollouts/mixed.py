"""Rollouts of which a share is written by one, and the rest comes from another."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout
from tutelage.rollouts.placed import PlacedRollouts
from tutelage.rollouts.share import ShareClock


@final
class MixedRollouts(PlacedRollouts):
    """For each row anew, a draw decides who completes it.

    The draw follows from the seed and the row's place in the global order, so all ranks agree on
    it, and a resumed run repeats it. A larger share only adds rows to those of a smaller one.

    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649; TRL's `lmbda` is the share, drawn there
    once for a whole batch.

    Args:
        one: completes the share, the student as a rule.
        other: completes the rest; it walks the same prompts in the same order.
        clock: where the share stands.
    """

    def __init__(self, one: PlacedRollouts, other: PlacedRollouts, *, clock: ShareClock) -> None:
        if one.order != other.order or len(one) != len(other):
            raise DataError(
                f"rollouts mixes {len(one)} rows in {one.order} with {len(other)} rows in "
                f"{other.order}; both must be the same prompts in the same order. "
                "Build both from the same rows and one order."
            )
        self._one = one
        self._other = other
        self._clock = clock
        super().__init__(len(one), one.order, fingerprint=f"{one.fingerprint}, {other.fingerprint}")

    @property
    @override
    def clocks(self) -> Sequence[ShareClock]:
        return (self._clock,)

    @property
    @override
    def num_generated(self) -> int:
        return self._one.num_generated + self._other.num_generated

    @property
    @override
    def numbers(self) -> Mapping[str, float]:
        return {**self._other.numbers, **self._one.numbers}

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        name = self._clock.name
        own = {name: self._clock.start, f"final_{name}": self._clock.end}
        return {**self._other.settings, **self._one.settings, **own}

    @override
    def at(self, places: Sequence[int]) -> list[Rollout]:
        ones = [place for place in places if self._draw(place) < self._clock.share]
        chosen = set(ones)
        others = [place for place in places if place not in chosen]
        found = dict(zip(ones, self._one.at(ones), strict=True))
        found |= zip(others, self._other.at(others), strict=True)
        return [found[place] for place in places]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "clock": self._clock.state_dict()}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._clock.load_state_dict(state["clock"])

    def _draw(self, place: int) -> float:
        # In [0, 1), so that a share of 0 takes none and a share of 1 takes all.
        generator = self.order.generator("mixed", place)
        return float(torch.rand((), generator=generator, dtype=torch.float64))
