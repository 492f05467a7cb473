"""Width pruning: which neurons write most, and a copy of a model without the others."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.core.errors import ConfigError
from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM
from tutelage.students.moe import feed_forward_blocks, feed_forwards, mean_activations


def neuron_importance(lm: CausalLM, batches: Sequence[TokenBatch]) -> list[Float[Tensor, " F"]]:
    """The mean length of what each neuron adds to the hidden states, for each layer.

        mean over tokens of |act(gate(x)) * up(x)|, times the length of the neuron's down column

    Raises:
        DataError: there is no token to look at.
        ModelError: the family's feed-forward part is of another kind.
    """
    sizes = mean_activations(lm, batches, absolute=True)
    return [
        size * neurons.down.double().norm(dim=0).cpu()
        for size, neurons in zip(sizes, feed_forwards(lm), strict=True)
    ]


def choose_neurons(
    importance: Sequence[Float[Tensor, " F"]], *, keep: int
) -> list[Int[Tensor, " kept"]]:
    """The neurons of each layer that stay, ascending; of equals, the earlier one.

    Raises:
        ConfigError: there are not that many.
    """
    check_width(keep, num_neurons=len(importance[0]))
    orders = [torch.argsort(layer, descending=True, stable=True) for layer in importance]
    return [order[:keep].sort().values for order in orders]


def check_width(keep: int, *, num_neurons: int) -> None:
    """Refuse to keep more neurons than there are.

    Raises:
        ConfigError: saying how many there are.
    """
    if keep > num_neurons:
        message = (
            f"student.keep_neurons is {keep}; it must be from 1 to {num_neurons}, the neurons of "
            "each layer of the model. Keep fewer."
        )
        raise ConfigError(message)


def prune_neurons(lm: CausalLM, keep: Sequence[Int[Tensor, " kept"]]) -> CausalLM:
    """A copy of the model with only these neurons in each layer; it shares no weight with it.

    Every layer keeps the same number, as the config has one width for all.

    Raises:
        ModelError: the family's feed-forward part is of another kind.
    """
    blocks = feed_forward_blocks(lm)
    # The copy of a wide matrix is its narrow one, so the wide one is never copied.
    memo: dict[int, Any] = {}
    for block, kept in zip(blocks, keep, strict=True):
        for name, side in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            linear = cast(nn.Linear, block.get_submodule(name))
            memo[id(linear)] = _narrow(linear, kept.to(linear.weight.device), side)
    model = deepcopy(lm.model, memo)
    model.config.intermediate_size = len(keep[0])
    for block in feed_forward_blocks(CausalLM(model, layout=lm.layout)):
        cast(Any, block).intermediate_size = len(keep[0])
    return CausalLM(model, layout=lm.layout)


def _narrow(linear: nn.Linear, kept: Int[Tensor, " kept"], side: int) -> nn.Linear:
    weight = linear.weight.detach().index_select(side, kept)
    narrow = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    narrow.weight = nn.Parameter(weight.clone(), requires_grad=linear.weight.requires_grad)
    narrow.train(linear.training)
    return narrow
