"""Looking at a mixture of experts from its routers: all experts alike, and who is chosen."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tutelage.core.errors import ModelError
from tutelage.models import CausalLM, anatomy_of, layers_of

_Routed: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""What a router of transformers answers: logits, gates of the chosen experts, their numbers."""


def routers_of(lm: CausalLM) -> list[nn.Module]:
    """Every layer's router, first layer to last; its `weight` has a row for each expert.

    Raises:
        ModelError: the model has none.
    """
    anatomy = anatomy_of(lm.config)
    if anatomy.router is None:
        message = (
            f"The model's family is {lm.config.model_type!r}, which has no router; it must be a "
            "mixture of experts. Make one with `tutelage upcycle`."
        )
        raise ModelError(message)
    return [layer.get_submodule(f"{anatomy.mlp}.{anatomy.router}") for layer in layers_of(lm.model)]


@contextmanager
def all_experts(lm: CausalLM, gate: float) -> Generator[None]:
    """Inside, every token uses every expert of every layer, each with this gate."""

    def everyone(router: nn.Module, _args: tuple[Tensor, ...], routed: _Routed) -> _Routed:
        logits, gates, _ = routed
        num_experts = router.get_parameter("weight").shape[0]
        numbers = torch.arange(num_experts, device=logits.device)
        shape = (logits.shape[0], num_experts)
        return logits, gates.new_full(shape, gate), numbers.expand(shape)

    with _hooked(lm, [everyone] * len(routers_of(lm))):
        yield


@contextmanager
def counted(lm: CausalLM) -> Generator[Int[Tensor, "layers E"]]:
    """Inside, how often each expert of each layer is chosen is added up in what it yields."""
    routers = routers_of(lm)
    num_experts = routers[0].get_parameter("weight").shape[0]
    counts = torch.zeros(len(routers), num_experts, dtype=torch.long)

    def counter(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], _Routed], None]:
        def count(_router: nn.Module, _args: tuple[Tensor, ...], routed: _Routed) -> None:
            chosen = routed[2].flatten().cpu()
            counts[layer] += torch.bincount(chosen, minlength=num_experts)

        return count

    with _hooked(lm, [counter(at) for at in range(len(routers))]):
        yield counts


@contextmanager
def _hooked(
    lm: CausalLM, hooks: list[Callable[[nn.Module, tuple[Tensor, ...], _Routed], _Routed | None]]
) -> Generator[None]:
    handles = [
        router.register_forward_hook(hook)
        for router, hook in zip(routers_of(lm), hooks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
