"""A mixture of experts made of a dense model, equal to it while every expert is at work.

Everything but the feed-forward parts is copied as it is. Expert j of a layer gets the gate rows,
up rows and down columns of its neurons. Renormalised gates add up to 1, so each of K chosen
experts counts about 1/K; the down columns are multiplied by what brings that back to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from tutelage.core.errors import ModelError
from tutelage.core.seeds import seed_for
from tutelage.models import CausalLM, anatomy_of, layers_of
from tutelage.students.moe.neurons import FeedForward, cut_neurons, feed_forwards
from tutelage.students.moe.settings import DropCopies, Upcycling
from tutelage.students.moe.shape import ExpertShape, shape_of, upcycled_config


@final
@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which neurons of one layer go where; together every neuron once."""

    experts: tuple[Int[Tensor, " _"], ...]
    """The neurons of each expert, ascending. Copies: all of them, each time."""
    shared: Int[Tensor, " _"]
    """Neurons that every token uses; mostly none."""


def gate_scale(plan: Upcycling, shape: ExpertShape) -> float:
    """What down columns are multiplied by, so that K chosen experts with equal gates count fully.

    K where gates add up to 1, and N where they are a softmax over N. An expert that is a copy
    holds everything already: 1, and N / K.
    """
    whole = 1 / shape.num_active if shape.copied else 1.0
    chosen = shape.num_active if plan.gates == "renormalised" else shape.num_experts
    return chosen * whole


def equal_gate(plan: Upcycling, shape: ExpertShape) -> float:
    """The gate at which all experts together are the dense feed-forward part."""
    part = 1 / shape.num_experts if shape.copied else 1.0
    return part / gate_scale(plan, shape)


def upcycle(
    dense: CausalLM,
    plan: Upcycling,
    groups: Sequence[Groups],
    routers: Sequence[Float[Tensor, "E D"]],
    *,
    seed: int = 0,
) -> CausalLM:
    """The mixture of experts; it shares no weight with the dense model.

    Args:
        groups: which neurons go where, for each layer.
        routers: a row for each expert, for each layer.
        seed: of the weights that `drop_copies` draws anew.

    Raises:
        ModelError: no mixture-of-experts family computes what this family does.
        ConfigError: so many experts cannot be had.
    """
    shape = shape_of(dense.config, plan)
    model = _blank(dense, plan)
    _copy_the_rest(dense.model, model)
    generator = torch.Generator().manual_seed(seed_for(seed, "redrawn"))
    scale = gate_scale(plan, shape)
    anatomy = anatomy_of(model.config)
    layers = zip(layers_of(model), feed_forwards(dense), groups, routers, strict=True)
    for layer, neurons, group, router in layers:
        block = layer.get_submodule(anatomy.mlp)
        experts = block.get_submodule(str(anatomy.experts))
        for at, members in enumerate(group.experts):
            mine = neurons
            if isinstance(plan.split, DropCopies):
                mine = _redrawn(neurons, plan.split.redrawn, generator)
            _fill(experts, at, cut_neurons(mine, members), scale)
        _write(block.get_submodule(str(anatomy.router)), "weight", router)
        if len(group.shared):
            _fill_shared(block, cut_neurons(neurons, group.shared))
    return CausalLM(model.eval(), layout=dense.layout)


def _blank(dense: CausalLM, plan: Upcycling) -> PreTrainedModel:
    """The host's model with memory for its weights and nothing in them yet."""
    config = upcycled_config(dense.config, plan)
    with no_init_weights():
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=dense.dtype))
    with torch.no_grad():
        for weight in model.parameters():
            # Room that no neuron fills must be zero, not what the memory held.
            weight.zero_()
    model.tie_weights()
    model.generation_config = dense.model.generation_config
    model.to(device=dense.device)  # pyright: ignore[reportCallIssue] - its annotation says less
    return model


def _copy_the_rest(dense: PreTrainedModel, model: PreTrainedModel) -> None:
    """Every weight outside the feed-forward parts, by its name, which is the same in both."""
    mlp = f".{anatomy_of(dense.config).mlp}."
    theirs, ours = dict(dense.named_parameters()), dict(model.named_parameters())
    missing = {name for name in theirs.keys() ^ ours.keys() if mlp not in name}
    if missing:
        message = (
            f"The weight {min(missing)} has no counterpart in the other family "
            f"({dense.config.model_type} and {model.config.model_type}); both must have the same "
            "beside their experts. Choose another model."
        )
        raise ModelError(message)
    with torch.no_grad():
        for name in theirs.keys() & ours.keys():
            ours[name].copy_(theirs[name])


def _fill(
    experts: nn.Module,
    at: int,
    neurons: tuple[Float[Tensor, "M D"], Float[Tensor, "M D"], Float[Tensor, "D M"]],
    scale: float,
) -> None:
    """Neurons into one expert; room behind them stays zero, which is a neuron that says nothing."""
    gate, up, down = neurons
    gate_up_E2MD = experts.get_parameter("gate_up_proj")
    down_EDM = experts.get_parameter("down_proj")
    width, num = gate_up_E2MD.shape[1] // 2, gate.shape[0]
    with torch.no_grad():
        gate_up_E2MD[at, :num] = gate
        gate_up_E2MD[at, width : width + num] = up
        down_EDM[at, :, :num] = down * scale


def _fill_shared(
    block: nn.Module,
    neurons: tuple[Float[Tensor, "M D"], Float[Tensor, "M D"], Float[Tensor, "D M"]],
) -> None:
    """Neurons into the expert that every token uses, whose own gate is sigmoid(0), a half."""
    gate, up, down = neurons
    shared = block.get_submodule("shared_expert")
    _write(shared.get_submodule("gate_proj"), "weight", gate)
    _write(shared.get_submodule("up_proj"), "weight", up)
    _write(shared.get_submodule("down_proj"), "weight", down * 2)


def _write(module: nn.Module, name: str, value: Tensor) -> None:
    with torch.no_grad():
        module.get_parameter(name).copy_(value)


def _redrawn(neurons: FeedForward, share: float, generator: torch.Generator) -> FeedForward:
    """The neurons with a share of them new: a normal with the mean and spread of those they were.

    The same neurons are new in all three matrices; each matrix has its own mean and spread.
    """
    num = round(share * neurons.num_neurons)
    chosen = torch.randperm(neurons.num_neurons, generator=generator)[:num]

    def drawn(weight: Float[Tensor, "F X"]) -> Float[Tensor, "F X"]:
        old = weight[chosen.to(weight.device)].float()
        if old.numel() < 2:  # noqa: PLR2004 - one number has no spread
            return weight
        noise = torch.randn(old.shape, generator=generator).to(old)
        new = weight.clone()
        new[chosen] = (old.mean() + old.std() * noise).to(weight.dtype)
        return new

    return FeedForward(gate=drawn(neurons.gate), up=drawn(neurons.up), down=drawn(neurons.down.T).T)
