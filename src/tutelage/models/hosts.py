"""Which mixture-of-experts family computes what a dense family computes: a table, not ifs.

Attention, norms and positions of a host are those of the dense family, so only the feed-forward
part changes. A new pair is a new line in `HOSTS`; the tests then hold it to the dense model's own
logits with every expert at work.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast, final

from transformers import AutoConfig, PretrainedConfig

from tutelage.core.errors import ConfigError, ModelError


@final
@dataclass(frozen=True, kw_only=True)
class Host:
    """The family that a dense model becomes, and its config's names for what is new."""

    family: str
    num_experts: str
    expert_width: str
    switches: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Entries that make every layer a layer of experts."""
    can_leave_gates: bool = True
    """Whether the gates of the chosen experts may keep the sum that the softmax gave them."""
    shared_width: str | None = None
    """The name for the width of an expert that every token uses; None where there is none."""
    must_be_off: tuple[str, ...] = ()
    """Switches of the dense config that the host has no weights for."""
    one_attention: bool = False
    """Whether all layers of the host attend alike, whatever the dense config says of each."""


_EVERY_LAYER: Mapping[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_MIXTRAL = Host(
    family="mixtral",
    num_experts="num_local_experts",
    expert_width="intermediate_size",
    can_leave_gates=False,
    must_be_off=("attention_bias", "mlp_bias"),
)

HOSTS: dict[str, Host] = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen2": Host(
        family="qwen2_moe",
        num_experts="num_experts",
        expert_width="moe_intermediate_size",
        switches=_EVERY_LAYER,
        shared_width="shared_expert_intermediate_size",
    ),
    "qwen3": Host(
        family="qwen3_moe",
        num_experts="num_experts",
        expert_width="moe_intermediate_size",
        switches=_EVERY_LAYER,
        one_attention=True,
    ),
}

_EMPTY_PLACE = 8
_NOT_THE_MODELS_SHAPE = {
    "model_type",
    "architectures",
    "transformers_version",
    "quantization_config",
    "_name_or_path",
    "dtype",
}


def host_of(config: PretrainedConfig) -> Host:
    """The host of the config's family.

    Raises:
        ModelError: no host computes the same, or not with this config.
    """
    family = config.model_type
    if family not in HOSTS:
        known = ", ".join(sorted(HOSTS))
        message = (
            f"The model's family is {family!r}; to become a mixture of experts it must be one of "
            f"{known}, whose attention some mixture-of-experts family computes exactly. Choose a "
            "model of one of these, or add a line to HOSTS in tutelage/models/hosts.py."
        )
        raise ModelError(message)
    host = HOSTS[family]
    for switch in host.must_be_off:
        if getattr(config, switch, False):
            message = (
                f"The model's {switch} is on; it must be off, since {host.family} has no weights "
                "for it. Choose another model."
            )
            raise ModelError(message)
    kinds = cast(list[str], getattr(config, "layer_types", None) or [])
    if host.one_attention and len(set(kinds)) > 1:
        message = (
            f"The model's layers attend differently ({', '.join(sorted(set(kinds)))}); they must "
            f"all be alike, as in {host.family}. Choose a model without sliding windows."
        )
        raise ModelError(message)
    return host


def host_config(
    dense: PretrainedConfig,
    *,
    num_experts: int,
    num_active: int,
    expert_width: int,
    shared_width: int = 0,
    add_up_to_one: bool = True,
) -> PretrainedConfig:
    """The host's config: the dense one, with experts in place of every feed-forward part.

    Args:
        shared_width: neurons that every token uses. A host that always has a place for them gets a
            small one where there are none, to be left at zero.
        add_up_to_one: the gates of the chosen experts are divided by their sum.

    Raises:
        ModelError: the dense family has no host.
        ConfigError: the host cannot do what is asked.
    """
    host = host_of(dense)
    if shared_width and host.shared_width is None:
        message = (
            f"student.shared is given, and {host.family} has no expert that every token uses; it "
            "must be 0. Leave it out, or begin with a Qwen2 model."
        )
        raise ConfigError(message)
    if not add_up_to_one and not host.can_leave_gates:
        message = (
            f"student.gates is softmax, and {host.family} always divides the chosen gates by their "
            "sum; it must be renormalised. Leave it out."
        )
        raise ConfigError(message)
    blank = AutoConfig.for_model(host.family)
    known = {*blank.to_dict(), "head_dim", "layer_types"} - _NOT_THE_MODELS_SHAPE
    carried = {name: deepcopy(value) for name, value in dense.to_dict().items() if name in known}
    if host.one_attention:
        carried.pop("layer_types", None)
    own: dict[str, Any] = {
        host.num_experts: num_experts,
        host.expert_width: expert_width,
        "num_experts_per_tok": num_active,
        "router_aux_loss_coef": 0.0,
        "output_router_logits": False,
        **host.switches,
    }
    if host.can_leave_gates:
        own["norm_topk_prob"] = add_up_to_one
    if host.shared_width is not None:
        # A place of width 0 would work, with a warning from torch at every load.
        own[host.shared_width] = shared_width or _EMPTY_PLACE
    config = AutoConfig.for_model(host.family, **{**carried, **own})
    config.dtype = dense.dtype
    return config
