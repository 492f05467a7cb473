# pyright: basic
# A door to transformers, whose types are partial. Copied as it is into folders of saved models.
"""Mixture-of-experts models whose routers add a bias to their scores before the softmax.

The stock classes have no place for such a bias and would leave it out. Load the folder that holds
this file with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`; it needs
torch and transformers, nothing else. `router_bias` in config.json says what the bias takes part in:
`gates` is softmax(W h + b), `choice` adds b to the probabilities, for the choice of experts only.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter


class _WithBias(nn.Module):
    """The host's router, with a bias in float32; where the bias is 0, the host's to the bit."""

    weight: nn.Parameter
    padd_bias: torch.Tensor
    bias_takes_part_in: str
    num_experts: int
    hidden_dim: int
    top_k: int

    def forward(self, hidden_states):  # noqa: ANN001, ANN202
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        logits = linear(hidden_states, self.weight)
        bias = self.padd_bias
        if self.bias_takes_part_in == "choice":
            scores = logits.float()
            probabilities = scores.softmax(dim=-1)
            chosen = (probabilities + bias).topk(self.top_k, dim=-1).indices
            gates = probabilities.gather(-1, chosen)
        else:
            scores = logits.float() + bias
            gates, chosen = scores.softmax(dim=-1).topk(self.top_k, dim=-1)
        # Mixtral always divides, and keeps its gates in float32.
        if getattr(self, "norm_topk_prob", True):
            gates = gates / gates.sum(dim=-1, keepdim=True)
        if hasattr(self, "norm_topk_prob"):
            gates = gates.to(logits.dtype)
        return scores.to(logits.dtype), gates, chosen


class BiasedMixtralRouter(_WithBias, MixtralTopKRouter):
    """Mixtral's."""


class BiasedQwen2MoeRouter(_WithBias, Qwen2MoeTopKRouter):
    """Qwen2-MoE's."""


class BiasedQwen3MoeRouter(_WithBias, Qwen3MoeTopKRouter):
    """Qwen3-MoE's."""


_ROUTERS = {
    MixtralTopKRouter: BiasedMixtralRouter,
    Qwen2MoeTopKRouter: BiasedQwen2MoeRouter,
    Qwen3MoeTopKRouter: BiasedQwen3MoeRouter,
}


def _give_biases(model: nn.Module, takes_part_in: str) -> None:
    routers: Any = [module for module in model.modules() if type(module) in _ROUTERS]
    for router in routers:
        # The module stays the one that it is, so whatever watches it goes on watching.
        router.__class__ = _ROUTERS[type(router)]
        router.bias_takes_part_in = takes_part_in
        router.register_buffer("padd_bias", torch.zeros(router.num_experts, dtype=torch.float32))


def _config(name: str, host: type[PreTrainedConfig]) -> Any:  # noqa: ANN401 - a class
    """The host's, with a model type of its own and what the bias takes part in."""
    kind = f"router_bias_{host.model_type}"
    return type(name, (host,), {"__module__": __name__, "model_type": kind, "router_bias": "gates"})


BiasedMixtralConfig = _config("BiasedMixtralConfig", MixtralConfig)
BiasedQwen2MoeConfig = _config("BiasedQwen2MoeConfig", Qwen2MoeConfig)
BiasedQwen3MoeConfig = _config("BiasedQwen3MoeConfig", Qwen3MoeConfig)


class BiasedMixtralForCausalLM(MixtralForCausalLM):
    """Mixtral with biased routers."""

    config_class = BiasedMixtralConfig
    _keep_in_fp32_modules_strict = {"padd_bias"}  # noqa: RUF012 - the form transformers reads

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - a class made above
        super().__init__(config)
        _give_biases(self, config.router_bias)


class BiasedQwen2MoeForCausalLM(Qwen2MoeForCausalLM):
    """Qwen2-MoE with biased routers."""

    config_class = BiasedQwen2MoeConfig
    _keep_in_fp32_modules_strict = {"padd_bias"}  # noqa: RUF012 - the form transformers reads

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - a class made above
        super().__init__(config)
        _give_biases(self, config.router_bias)


class BiasedQwen3MoeForCausalLM(Qwen3MoeForCausalLM):
    """Qwen3-MoE with biased routers."""

    config_class = BiasedQwen3MoeConfig
    _keep_in_fp32_modules_strict = {"padd_bias"}  # noqa: RUF012 - the form transformers reads

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - a class made above
        super().__init__(config)
        _give_biases(self, config.router_bias)


for _host in ("mixtral", "qwen2_moe", "qwen3_moe"):
    # The files name each expert's matrices; whoever knows the host knows how to stack them.
    _mapping: Any = get_checkpoint_conversion_mapping(_host)
    if _mapping is not None:
        register_checkpoint_conversion_mapping(f"router_bias_{_host}", _mapping, overwrite=True)
