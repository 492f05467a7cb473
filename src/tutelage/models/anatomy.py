"""Where each family of language models keeps its parts: a table, not ifs.

A family is what transformers calls `model_type`. A new one is a new line in `FAMILIES`; the tests
then hold it to `head(hidden) == model(...).logits` and to rows that attend only to themselves.
"""

from dataclasses import dataclass
from typing import Any, cast, final

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from tutelage.core.errors import ModelError
from tutelage.core.targets import Head


@final
@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Dotted paths of one family's parts, from the model with the head down."""

    backbone: str = "model"
    """The part that gives hidden states after the final norm."""
    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    multiplier: str | None = None
    """The config's name for a factor on the logits."""
    divisor: str | None = None
    """The config's name for a divisor of the logits."""
    softcap: str | None = None
    """The config's name for the logits' soft cap; its value may be None."""
    layer_index_matters: tuple[str, ...] = ()
    """Config switches under which a layer computes differently at another depth."""
    mlp: str = "mlp"
    """The feed-forward part of one layer, from the layer down."""
    gated: bool = False
    """Whether it is down(act(gate(x)) * up(x)) with linear maps `gate_proj up_proj down_proj`."""
    router: str | None = None
    """What chooses among experts, from the feed-forward part down; None where it is dense."""
    experts: str | None = None
    """The stacked experts, likewise."""


_LLAMA = Anatomy()
_GATED = Anatomy(gated=True)
_EXPERTS = Anatomy(router="gate", experts="experts")

FAMILIES: dict[str, Anatomy] = {
    "cohere": Anatomy(gated=True, multiplier="logit_scale"),
    "cohere2": Anatomy(gated=True, multiplier="logit_scale"),
    "gemma": _GATED,
    "gemma2": Anatomy(gated=True, softcap="final_logit_softcapping"),
    "gemma3_text": Anatomy(gated=True, softcap="final_logit_softcapping"),
    "gpt2": Anatomy(
        backbone="transformer",
        embedding="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        layer_index_matters=("scale_attn_by_inverse_layer_idx",),
    ),
    "gpt_neox": Anatomy(
        backbone="gpt_neox",
        embedding="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
    ),
    "granite": Anatomy(gated=True, divisor="logits_scaling"),
    "llama": _GATED,
    "mistral": _GATED,
    "mixtral": _EXPERTS,
    "olmo2": _GATED,
    "olmo3": _GATED,
    "phi": Anatomy(final_norm="model.final_layernorm"),
    "phi3": _LLAMA,
    "qwen2": _GATED,
    "qwen2_moe": _EXPERTS,
    "qwen3": _GATED,
    "qwen3_moe": _EXPERTS,
    "smollm3": _GATED,
    "starcoder2": _LLAMA,
}


def anatomy_of(config: PretrainedConfig) -> Anatomy:
    """The parts of the config's family.

    Raises:
        ModelError: for a family that is not in the table.
    """
    family = config.model_type
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        message = (
            f"The model's family is {family!r}; it must be one of {known}. Choose a model of one "
            "of these, or add a line to FAMILIES in tutelage/models/anatomy.py."
        )
        raise ModelError(message)
    return FAMILIES[family]


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The part that gives hidden states after the final norm, without any logits."""
    return model.get_submodule(anatomy_of(model.config).backbone)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, first to last."""
    return cast(nn.ModuleList, model.get_submodule(anatomy_of(model.config).layers))


def head_of(model: PreTrainedModel) -> Head:
    """The last linear map, its weight and bias borrowed, with the family's scale and soft cap."""
    anatomy = anatomy_of(model.config)
    linear = cast(nn.Linear, model.get_submodule(anatomy.head))
    scale = 1.0
    if anatomy.multiplier is not None:
        scale *= _number(model.config, anatomy.multiplier)
    if anatomy.divisor is not None:
        scale /= _number(model.config, anatomy.divisor)
    softcap = None
    if anatomy.softcap is not None and getattr(model.config, anatomy.softcap) is not None:
        softcap = _number(model.config, anatomy.softcap)
    return Head(weight=linear.weight, bias=linear.bias, scale=scale, softcap=softcap)


def _number(config: PretrainedConfig, name: str) -> float:
    value: Any = getattr(config, name)
    return float(value)
