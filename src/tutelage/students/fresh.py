"""New models with random weights, from another one's config."""

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tutelage.core.errors import ConfigError
from tutelage.models import CausalLM, anatomy_of


def fresh_config(base: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    """The base's config with changes, and everything that follows from them computed anew.

    Layer-by-layer lists are made again when the number of layers changes, and the width of a
    head when it was width / heads before.

    Raises:
        ConfigError: for a name the config does not have, or values it does not allow.
    """
    written = base.to_dict()
    names = {*written, *base.attribute_map}
    for name in changes:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            advice = f"Did you mean {close[0]}?" if close else "See the model's config.json."
            message = (
                f"student.config.{name} is not a setting of {base.model_type}; it must be one of "
                f"its config. {advice}"
            )
            raise ConfigError(message)
    named = {base.attribute_map.get(name, name): value for name, value in changes.items()}
    written = {**_without_layer_lists(base, written, named), **named}
    for name in ("quantization_config", "architectures", "transformers_version", "model_type"):
        written.pop(name, None)
    try:
        if "head_dim" not in named:
            written |= _head_dim(base, written)
        return type(base)(**written)
    except (TypeError, ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        message = (
            f"student.config is {dict(changes)}; it must make a valid {base.model_type} config "
            f"({reason}). Change it."
        )
        raise ConfigError(message) from error


def fresh_model(config: PretrainedConfig, *, seed: int, dtype: torch.dtype) -> CausalLM:
    """The config's model with its family's own initialisation, the same for the same seed."""
    anatomy_of(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cast(
            PreTrainedModel, AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32)
        )
    return CausalLM(model.eval()).to(dtype)


def _without_layer_lists(
    base: PretrainedConfig, written: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings, less the lists of one entry a layer when the number of layers changes."""
    depth = base.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if depth not in changes:
        return dict(written)
    return {
        name: value
        for name, value in written.items()
        if not isinstance(value, (list, tuple))
        or len(cast(Sequence[Any], value)) != base.num_hidden_layers
    }


def _head_dim(base: PretrainedConfig, written: Mapping[str, Any]) -> dict[str, int]:
    """Width / heads, where the base has it so and says it in so many words."""
    says = cast(int | None, getattr(base, "head_dim", None))
    if "head_dim" not in written or says != base.hidden_size // base.num_attention_heads:
        return {}
    return {"head_dim": written["hidden_size"] // written["num_attention_heads"]}
