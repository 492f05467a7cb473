"""What is asked of a student's routers, whoever listens to them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.records import View


@runtime_checkable
class Routings(Protocol):
    """What the routers said in one forward pass over L tokens, layer by layer."""

    @property
    def probabilities(self) -> Sequence[Float[Tensor, "L E"]]:
        """Over all experts, before top-k, in float32 or better."""
        ...

    @property
    def chosen(self) -> Sequence[Int[Tensor, "L K"]]:
        """The experts that each token went to."""
        ...


@runtime_checkable
class Tap(Protocol):
    """Has listened to one forward pass."""

    def of(self, view: View) -> Routings:
        """What was heard of the tokens of this view, in their order."""
        ...


Routes: TypeAlias = Sequence[Int[Tensor, "L K"]]
"""For each layer, the experts that the tokens of one forward pass go to."""

WatchRouters: TypeAlias = Callable[[Routes | None], AbstractContextManager[Tap]]
"""Listens while the context is open. Given routes, it also sends the tokens along them."""
