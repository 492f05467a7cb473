"""Depth pruning: which layers matter, and a copy of a model without the others."""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from tutelage.core.errors import ConfigError, DataError, ModelError
from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM, anatomy_of, layers_of

_LOG = logging.getLogger(__name__)

_Hook: TypeAlias = Callable[
    [nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor | tuple[Tensor, ...]], None
]


@torch.no_grad()
def block_influence(lm: CausalLM, batches: Sequence[TokenBatch]) -> list[float]:
    """How much each layer changes what it is given: 1 - mean cosine(hidden in, hidden out).

    The mean is over all tokens of all rows as the student reads them, in float32. 0 is a layer
    that might as well not be there.

    Raises:
        DataError: without a single token to measure on.

    Source: Men et al. 2024 (ShortGPT), arXiv:2403.03853, equation 1.
    """
    if not any(batch.num_tokens for batch in batches):
        message = (
            "The calibration rows are empty; there must be at least one, to choose layers by "
            "influence. Give some rows, or choose: uniform."
        )
        raise DataError(message)
    was_training = lm.training
    # Padding would be measured too, so rows go end to end whatever the model's own layout.
    packed = CausalLM(lm.model, layout="packed").eval()
    layers = layers_of(lm.model)
    sums = torch.zeros(len(layers), dtype=torch.float64)
    handles = [
        layer.register_forward_hook(_measure(sums, at), with_kwargs=True)
        for at, layer in enumerate(layers)
    ]
    try:
        for batch in batches:
            packed.hidden(batch.student)
    finally:
        for handle in handles:
            handle.remove()
        lm.train(was_training)
    num_tokens = sum(batch.num_tokens for batch in batches)
    return [1.0 - float(total) / num_tokens for total in sums]


def choose_layers(
    how: Literal["influence", "uniform"] | Sequence[int],
    *,
    keep: int,
    num_layers: int,
    influence: Sequence[float] | None = None,
) -> list[int]:
    """The layers that stay, ascending.

    `influence` drops the lowest first (of equals, the later one); `uniform` spaces them evenly and
    keeps the first and the last; a list is taken as it is.

    Raises:
        ConfigError: when that many, or those, cannot be kept.
    """
    if not 1 <= keep <= num_layers:
        message = (
            f"student.keep_layers is {keep}; it must be from 1 to {num_layers}, the layers of the "
            "model. Keep fewer."
        )
        raise ConfigError(message)
    if how == "influence" and keep < num_layers:
        scores = cast(Sequence[float], influence)
        by_score = sorted(range(num_layers), key=lambda at: (-scores[at], at))
        return sorted(by_score[:keep])
    if isinstance(how, str):
        step = (num_layers - 1) / max(keep - 1, 1)
        return [round(at * step) for at in range(keep)]
    chosen = list(how)
    if len(chosen) != keep or chosen != sorted({at for at in chosen if 0 <= at < num_layers}):
        message = (
            f"student.choose is {chosen}; it must be {keep} different layers from 0 to "
            f"{num_layers - 1}, ascending. Change it or student.keep_layers."
        )
        raise ConfigError(message)
    return chosen


def layers_by_influence(lm: CausalLM, batches: Sequence[TokenBatch], *, keep: int) -> list[int]:
    """The layers that `choose_layers` keeps by their influence on these rows; the log names them.

    Raises:
        ConfigError: the model has not that many.
        DataError: there is no token to measure on.
    """
    num_layers = len(layers_of(lm.model))
    if keep >= num_layers:
        return choose_layers("uniform", keep=keep, num_layers=num_layers)
    influence = block_influence(lm, batches)
    chosen = choose_layers("influence", keep=keep, num_layers=num_layers, influence=influence)
    names = ", ".join(map(str, chosen))
    _LOG.info("Layers %s of %d stay: influence chose them.", names, num_layers)
    return chosen


def prune_layers(lm: CausalLM, keep: Sequence[int]) -> CausalLM:
    """A copy of the model with only these layers, in this order; it shares no weight with it.

    Layers are renumbered for the key-value cache, and what the config says layer by layer (kinds
    of attention, positions) is cut alike, so the saved copy loads and generates as it is.

    Raises:
        ModelError: for a config whose layers compute differently at another depth.
    """
    for switch in anatomy_of(lm.config).layer_index_matters:
        if getattr(lm.config, switch, False):
            message = (
                f"The model's {switch} is on; it must be off to drop layers, since each layer "
                "would compute something else at its new depth. Choose another model."
            )
            raise ModelError(message)
    layers = layers_of(lm.model)
    # The copy of a dropped layer is this placeholder, so its weights are never copied.
    memo: dict[int, Any] = {
        id(layer): nn.Identity() for at, layer in enumerate(layers) if at not in set(keep)
    }
    model = deepcopy(lm.model, memo)
    kept = [layers_of(model)[at] for at in keep]
    model.set_submodule(anatomy_of(lm.config).layers, nn.ModuleList(kept))
    for at, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                cast(Any, module).layer_idx = at
    _cut_config(model.config, keep, len(layers))
    return CausalLM(model, layout=lm.layout)


def _cut_config(config: PretrainedConfig, keep: Sequence[int], num_layers: int) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(cast(Sequence[Any], value)) == num_layers:
            setattr(config, name, [value[at] for at in keep])
    config.num_hidden_layers = len(keep)


def _measure(sums: Float[Tensor, " layers"], at: int) -> _Hook:
    def hook(
        _module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor | tuple[Tensor, ...],
    ) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        answered = output[0] if isinstance(output, tuple) else output
        cosine = torch.cosine_similarity(given.float(), answered.float(), dim=-1)
        sums[at] += cosine.double().sum().cpu()

    return hook
