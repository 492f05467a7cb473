"""What the routers of one model are told to do, and who hears what they chose.

All routers of a model share one `RouterControl`. Without an order they route. An order holds for
the forward passes inside a `with`, so that evaluation and writing always route; a layer that
gradient checkpointing computes again chooses as it did the first time, whatever is in force then.
"""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import ModelError


@final
@dataclass(frozen=True)
class Route:
    """By the router's own scores."""


@final
@dataclass(frozen=True)
class UniformSample:
    """K experts a token without replacement, all equally likely, each with the gate 1 / K.

    The numbers of a layer are drawn from its own generator in the order of the tokens, so how
    rows are cut into forward passes changes no choice.
    """

    generators: Sequence[torch.Generator]
    """One a layer, on the CPU."""


@final
@dataclass(frozen=True)
class UniformDense:
    """All experts, each with the gate 1 / E: what `UniformSample` is on average."""


@final
@dataclass(frozen=True)
class Replay:
    """The experts that were chosen before; the gates are the scores of now, and learn.

    Source: Ma et al. 2025 (R3), arXiv:2510.11370.
    """

    chosen: Sequence[Int[Tensor, "L K"]]
    """For each layer, the experts of the tokens of one forward pass."""


Order: TypeAlias = Route | UniformSample | UniformDense | Replay


@runtime_checkable
class RouterListener(Protocol):
    """Someone who wants to know what routers choose."""

    def routed(
        self, layer: int, probabilities: Float[Tensor, "L E"], chosen: Int[Tensor, "L K"]
    ) -> None:
        """A router has chosen."""
        ...


@runtime_checkable
class ExpertListener(Protocol):
    """Someone who wants to know how active experts are."""

    def acted(self, layer: int, means: Float[Tensor, " E"], heard: Int[Tensor, " E"]) -> None:
        """The experts of a layer were active so much on the mean, on so many tokens each."""
        ...


@final
@dataclass(frozen=True)
class Decision:
    """What a router did with the tokens of one forward pass."""

    order: Order
    chosen: Int[Tensor, "L K"]


@final
@dataclass
class _Passage:
    """One layer's way through gradient checkpointing: forwards, and later once more."""

    decisions: dict[int, Decision] = field(default_factory=dict[int, Decision])
    again: bool = False


@final
class RouterControl:
    """Shared by the routers and the experts of one model. A copy of a model starts with a new one.

    Args:
        num_layers: those with experts.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self._order: Order = Route()
        self._router_listeners: list[RouterListener] = []
        self._expert_listeners: list[ExpertListener] = []
        self._passage: _Passage | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> "RouterControl":
        copied = memo[id(self)] = RouterControl(self.num_layers)
        return copied

    @contextmanager
    def ordered(self, order: Order) -> Generator[None]:
        """Routers do this for a while.

        Raises:
            ModelError: the order is for another number of layers.
        """
        match order:
            case UniformSample(generators=parts) | Replay(chosen=parts):
                if len(parts) != self.num_layers:
                    message = (
                        f"The order to the routers is for {len(parts)} layers; it must be for "
                        f"{self.num_layers}, those with experts. Make it from this model."
                    )
                    raise ModelError(message)
            case _:
                pass
        before, self._order = self._order, order
        try:
            yield
        finally:
            self._order = before

    @contextmanager
    def heard_by(self, listener: RouterListener) -> Generator[None]:
        """Routers tell the listener what they choose, but nothing that is computed again."""
        self._router_listeners.append(listener)
        try:
            yield
        finally:
            self._router_listeners.remove(listener)

    @contextmanager
    def experts_heard_by(self, listener: ExpertListener) -> Generator[None]:
        """Experts tell the listener how active they are, likewise."""
        self._expert_listeners.append(listener)
        try:
            yield
        finally:
            self._expert_listeners.remove(listener)

    def passages(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For `context_fn` of torch's checkpoint: around a layer's forward, and around the next."""
        passage = _Passage()
        return self._through(passage, again=False), self._through(passage, again=True)

    @contextmanager
    def _through(self, passage: _Passage, *, again: bool) -> Generator[None]:
        before = self._passage
        self._passage, passage.again = passage, again
        try:
            yield
        finally:
            self._passage = before

    @property
    def order(self) -> Order:
        """What is in force now."""
        return self._order

    @property
    def inside_passage(self) -> bool:
        """Whether whatever is chosen now will be remembered for the second time."""
        return self._passage is not None

    def earlier(self, layer: int) -> Decision | None:
        """What this layer did the first time, where this is the second."""
        if self._passage is None or not self._passage.again:
            return None
        return self._passage.decisions[layer]

    @property
    def experts_are_heard(self) -> bool:
        """Whether anyone wants to know how active experts are, now."""
        again = self._passage is not None and self._passage.again
        return bool(self._expert_listeners) and not again

    def decided(self, layer: int, decision: Decision, probabilities: Float[Tensor, "L E"]) -> None:
        """A router has chosen for the first time."""
        if self._passage is not None:
            self._passage.decisions[layer] = decision
        for listener in self._router_listeners:
            listener.routed(layer, probabilities, decision.chosen)

    def acted(self, layer: int, means: Float[Tensor, " E"], heard: Int[Tensor, " E"]) -> None:
        """Experts have been active."""
        for listener in self._expert_listeners:
            listener.acted(layer, means, heard)
