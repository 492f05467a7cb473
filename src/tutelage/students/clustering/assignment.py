"""Who goes into which cluster when every cluster has a size: the cheapest assignment, exactly.

A transport problem with few places and many goers. Prices of the places are moved until the
goers' own choices nearly fill them; what is left over is moved along cheapest paths between the
places, one goer for each edge, which keeps the assignment optimal for its sizes all the way.
"""

from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

_NUM_PRICE_ROUNDS = 60
_ROUNDS_PER_STEP = 10
_SMALLER_STEP = 0.7


def balanced_assignment(
    cost: Float[Tensor, "F E"],
    sizes: Sequence[int],
    prices: Float[Tensor, " E"] | None = None,
) -> tuple[Int[Tensor, " F"], Float[Tensor, " E"]]:
    """The place of each goer, so that place e has `sizes[e]` of them and the sum of costs is least.

    Costs are taken in float64, so ties within its rounding may fall either way; the same costs
    always give the same answer. The time is about that of some dozen passes over the costs.

    Args:
        prices: from an earlier call with similar costs; changes the time, not the sum.

    Returns:
        The places, and prices under which nobody would rather be somewhere else.

    Source: successive shortest paths, Busacker and Gowen 1960, on the graph of places.
    """
    flow = _Flow(
        cost=cost.detach().double().cpu().numpy(),
        sizes=np.asarray(sizes, dtype=np.int64),
        prices=np.zeros(len(sizes)) if prices is None else prices.double().cpu().numpy().copy(),
    )
    flow.choose_prices()
    flow.balance()
    return torch.from_numpy(flow.place), torch.from_numpy(flow.prices)


@final
class _Flow:
    """An assignment on its way from cheapest-for-each to balanced."""

    def __init__(self, *, cost: Floats, sizes: Ints, prices: Floats) -> None:
        assert cost.shape[0] == sizes.sum(), "the sizes must add up to the goers"  # noqa: S101
        self.cost = cost
        self.sizes = sizes
        self.prices = prices
        self.place: Ints = np.zeros(len(cost), dtype=np.int64)

    def choose_prices(self) -> None:
        """Raise the price of crowded places, lower that of empty ones; keep the best seen."""
        cost, sizes, prices = self.cost, self.sizes, self.prices
        if cost.shape[1] > 1:
            nearest = np.partition(cost, 1, axis=1)
            step = float((nearest[:, 1] - nearest[:, 0]).mean())
        else:
            step = 0.0
        fewest = len(cost) + 1
        for number in range(1, _NUM_PRICE_ROUNDS + 1):
            place = (cost + prices).argmin(axis=1)
            counts = np.bincount(place, minlength=len(sizes))
            surplus = int(np.maximum(counts - sizes, 0).sum())
            if surplus < fewest:
                fewest, self.prices, self.place = surplus, prices, place
            if surplus == 0:
                break
            prices = prices + step * (counts - sizes) / np.maximum(sizes, 1)
            if number % _ROUNDS_PER_STEP == 0:
                step *= _SMALLER_STEP

    def balance(self) -> None:
        """Move goers along cheapest paths from places with too many to places with too few."""
        num_places = len(self.sizes)
        self._counts = np.bincount(self.place, minlength=num_places)
        if (self._counts == self.sizes).all():
            return
        # The least that moving some goer from place i to place j costs, and who that is.
        self._move = np.full((num_places, num_places), np.inf)
        self._mover = np.zeros((num_places, num_places), dtype=np.int64)
        for place in range(num_places):
            self._look_at(place)
        while (self._counts > self.sizes).any():
            self._push_one()

    def _push_one(self) -> None:
        """One goer more for the nearest place that wants one."""
        distance, before, last = self._shortest_path()
        # With shorter ways made dearer by their length, no move is cheaper than staying.
        self.prices = self.prices - np.minimum(distance, distance[last])
        touched, at = {last}, last
        steps: list[tuple[int, int]] = []
        while before[at] >= 0:
            steps.append((int(self._mover[before[at], at]), at))
            at = int(before[at])
            touched.add(at)
        for goer, to in steps:
            self.place[goer] = to
        self._counts[at] -= 1
        self._counts[last] += 1
        for place in touched:
            self._look_at(place)

    def _shortest_path(self) -> tuple[Floats, Ints, int]:
        """Dijkstra over reduced costs from all places with too many to one with too few."""
        num_places = len(self.sizes)
        distance = np.where(self._counts > self.sizes, 0.0, np.inf)
        before = np.full(num_places, -1, dtype=np.int64)
        done = np.zeros(num_places, dtype=bool)
        while True:
            at = int(np.where(done, np.inf, distance).argmin())
            done[at] = True
            if self._counts[at] < self.sizes[at]:
                return distance, before, at
            # Negative only by rounding.
            edge = np.maximum(self._move[at] + self.prices - self.prices[at], 0.0)
            through = distance[at] + edge
            closer = (through < distance) & ~done
            distance[closer] = through[closer]
            before[closer] = at

    def _look_at(self, place: int) -> None:
        members = np.flatnonzero(self.place == place)
        if not len(members):
            self._move[place] = np.inf
            return
        change = self.cost[members] - self.cost[members, place][:, None]
        cheapest = change.argmin(axis=0)
        self._move[place] = change[cheapest, np.arange(len(self.sizes))]
        self._mover[place] = members[cheapest]
        self._move[place, place] = np.inf
