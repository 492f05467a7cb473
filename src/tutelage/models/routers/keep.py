# pyright: basic
# A door to transformers' configs and files, whose types are partial.
"""A model's router biases on disk: stock classes have no place for them.

Where all are 0 the folder is the stock one. Elsewhere it holds the biases with the weights, names
a model type that stock transformers does not know, and brings the code that does: whoever loads it
without that code is told, and nobody gets a model without its biases.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tutelage.models.routers import modeling_router_bias as biased
from tutelage.models.routers.install import biases_of, host_of, install_biased_routers, routers_of
from tutelage.models.routers.router import BIAS

_PREFIX = "router_bias_"
_CLASSES = {
    "mixtral": (biased.BiasedMixtralConfig, biased.BiasedMixtralForCausalLM),
    "qwen2_moe": (biased.BiasedQwen2MoeConfig, biased.BiasedQwen2MoeForCausalLM),
    "qwen3_moe": (biased.BiasedQwen3MoeConfig, biased.BiasedQwen3MoeForCausalLM),
}


def register_biased_models() -> None:
    """Let transformers' auto classes load such folders here; doing it twice changes nothing."""
    for config, model in _CLASSES.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


def has_bias(model: nn.Module) -> bool:
    """Whether any router's bias is other than 0."""
    biases = biases_of(model)
    return biases is not None and bool(biases.any())


def state_to_save(model: PreTrainedModel) -> dict[str, Any] | None:
    """The model's state without biases that are all 0; None where it can be saved as it is."""
    if not routers_of(model) or has_bias(model):
        return None
    return {name: t for name, t in model.state_dict().items() if not name.endswith(f".{BIAS}")}


def describe_bias(model: PreTrainedModel, folder: Path) -> None:
    """Say in the saved folder how its biases are read; nothing where there are none."""
    if not has_bias(model):
        return
    config, kind = _CLASSES[model.config.model_type]
    code = Path(biased.__file__)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    written |= {
        "model_type": config.model_type,
        "architectures": [kind.__name__],
        "auto_map": {
            "AutoConfig": f"{code.stem}.{config.__name__}",
            "AutoModelForCausalLM": f"{code.stem}.{kind.__name__}",
        },
        "router_bias": routers_of(model)[0].takes_part_in,
    }
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(code, folder / code.name)


def host_config(config: PretrainedConfig) -> PretrainedConfig:
    """The stock config behind that of a model with biases; any other config as it is."""
    if config.model_type.startswith(_PREFIX):
        config.__class__ = type(config).__mro__[1]
        for name in ("router_bias", "auto_map", "model_type"):
            vars(config).pop(name, None)
    return config


def host_model(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model behind one with biases, its routers ours; any other model as it is."""
    if model.config.model_type.startswith(_PREFIX):
        install_biased_routers_of(model)
        model.__class__ = type(model).__mro__[1]
    return model


def install_biased_routers_of(model: PreTrainedModel) -> None:
    """Take over the biases that came with the files."""
    host_config(host_of(model).config)
    install_biased_routers(model)
