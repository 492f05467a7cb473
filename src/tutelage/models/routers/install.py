# pyright: basic
# A door to transformers' modules, whose types are partial.
"""Finding a model's routers, and making them ours without taking them out."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutelage.core.errors import ModelError
from tutelage.models.anatomy import anatomy_of, layers_of
from tutelage.models.routers.control import RouterControl
from tutelage.models.routers.router import BIAS, HOSTS, BiasedRouter, TakesPartIn


def install_biased_routers(
    model: nn.Module, *, takes_part_in: TakesPartIn | None = None
) -> RouterControl:
    """Give each router of the model a bias of 0, and all of them one control.

    The modules stay where and what they are, only their class changes: optimizers, hooks and
    names hold. Doing it twice changes no bias.

    Args:
        model: a transformers model, or a module around one.
        takes_part_in: what the bias changes; None leaves it, and is `gates` for new ones.

    Raises:
        ModelError: the model is dense, or its router is of a class we do not know.
    """
    blocks = list(_blocks(host_of(model)))
    if not blocks:
        message = (
            f"The model is a dense {host_of(model).config.model_type}; it must be a mixture of "
            "experts to be routed. Choose a model with experts, or leave the routing out."
        )
        raise ModelError(message)
    known = control_of(model)
    control = known or RouterControl(len(blocks))
    for layer, (router, experts) in enumerate(blocks):
        ours = router if isinstance(router, BiasedRouter) else _converted(router)
        ours.control = experts.control = control
        ours.layer = experts.layer = layer
        ours.takes_part_in = takes_part_in or ours.takes_part_in
    control.num_layers = len(blocks)
    return control


def control_of(model: nn.Module) -> RouterControl | None:
    """The control of the model's routers; None where none are installed."""
    return next((router.control for router in routers_of(model)), None)


def checkpointing_options(model: nn.Module) -> dict[str, Any]:
    """For `activation_checkpointing_enable`: what is computed again is routed as the first time."""
    if not has_experts(model):
        return {"use_reentrant": False}
    return {"use_reentrant": False, "context_fn": install_biased_routers(model).passages}


def has_experts(model: nn.Module) -> bool:
    """Whether any layer chooses among experts."""
    return next(_blocks(host_of(model)), None) is not None


def routers_of(model: nn.Module) -> list[BiasedRouter]:
    """The installed routers, first layer to last."""
    return [module for module in model.modules() if isinstance(module, BiasedRouter)]


def biases_of(model: nn.Module) -> Float[Tensor, "layer E"] | None:
    """A copy of all biases; None where no routers are installed."""
    routers = routers_of(model)
    return torch.stack([router.padd_bias for router in routers]) if routers else None


def set_biases(model: nn.Module, biases: Float[Tensor, "layer E"]) -> None:
    """Write the biases into the installed routers, in place."""
    for router, bias in zip(routers_of(model), biases, strict=True):
        router.padd_bias.copy_(bias)


def freeze_routers(model: nn.Module) -> None:
    """Keep the routers' weights as they are: where routing is uniform they have no gradient."""
    for router, _ in _blocks(host_of(model)):
        router.requires_grad_(requires_grad=False)


def freeze_all_but_experts(model: nn.Module) -> None:
    """Keep everything as it is but the routed experts' own matrices."""
    experts = {id(p) for _, block in _blocks(host_of(model)) for p in block.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in experts:
            parameter.requires_grad = False


def host_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, or inside."""
    return next(m for m in model.modules() if isinstance(m, PreTrainedModel))


def _blocks(model: PreTrainedModel) -> Iterator[tuple[Any, Any]]:
    """Router and experts of each layer that has them."""
    anatomy = anatomy_of(model.config)
    if anatomy.router is None or anatomy.experts is None:
        return
    for layer in layers_of(model):
        children = dict(layer.get_submodule(anatomy.mlp).named_children())
        if anatomy.experts in children:
            yield children[anatomy.router], children[anatomy.experts]


def _converted(router: Any) -> BiasedRouter:  # noqa: ANN401 - transformers' classes have no parent
    host, bias = _host_class(router), dict(router.named_buffers()).get(BIAS)
    takes_part_in = getattr(router, "bias_takes_part_in", "gates")
    if bias is None:
        bias = torch.zeros(router.num_experts, device=router.weight.device)
    router.__class__ = HOSTS[host]
    router.register_buffer(BIAS, bias.float())
    router.takes_part_in = takes_part_in
    # Mixtral has no such setting: it always divides, and keeps float32.
    router.rounds = hasattr(router, "norm_topk_prob")
    router.divides = getattr(router, "norm_topk_prob", True)
    return router


def _host_class(router: nn.Module) -> type[nn.Module]:
    host = next((kind for kind in HOSTS if isinstance(router, kind)), None)
    # A class of ours that came with saved files has the buffer already; no other subclass has.
    if host is None or (type(router) is not host and BIAS not in dict(router.named_buffers())):
        known = ", ".join(kind.__name__ for kind in HOSTS)
        message = (
            f"The model's router is a {type(router).__name__}; it must be one of {known}. "
            "Choose a model of these, or add its class to tutelage/models/routers/router.py."
        )
        raise ModelError(message)
    return host
