# pyright: basic
# The door to peft, whose types are partial.
"""Low-rank adapters: small trained matrices beside frozen ones; switched off, merged, saved.

They are put into the model itself, so that all who know the model's parts find them where they
were. A matrix with an adapter acts as

    weight + alpha / rank * B @ A

and that product is what `moving_weights` and `plain_copy` give. B starts at zero.

Source: Hu et al. 2021 (LoRA), arXiv:2106.09685.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tutelage.core.errors import ConfigError, ModelError, OutputError
from tutelage.models.anatomy import anatomy_of
from tutelage.models.causal_lm import CausalLM

_ADAPTER = "default"
_ALL = "all-linear"


def add_lora(
    lm: CausalLM,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str] | None,
    seed: int,
) -> None:
    """Freeze the model and put a trainable adapter beside its matrices, changing no output yet.

    The adapter's matrices are float32, whatever the model's own are kept in.

    Args:
        targets: names of linear layers, such as q_proj; None: all of them but the head.
        seed: where the random numbers of A come from.

    Raises:
        ConfigError: for a target that is no linear layer inside the model, or a mixture of experts.
    """
    if anatomy_of(lm.config).router is not None:
        message = (
            "student.lora is given, and the student is a mixture of experts "
            f"({lm.config.model_type}), whose stacked experts no adapter of ours reaches; it must "
            "be null. Leave it out, and freeze what is to stay: student.freeze: ['*.self_attn.*']."
        )
        raise ConfigError(message)
    transposed = any(isinstance(module, Conv1D) for module in lm.model.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),  # its annotation is narrower than its arithmetic
        lora_dropout=dropout,
        target_modules=_ALL if targets is None else list(targets),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    _check_targets(lm.model, targets or ())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, lm.model, adapter_name=_ADAPTER)
    for name, parameter in lm.model.named_parameters():
        parameter.requires_grad = ".lora_" in name
        if ".lora_" in name and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def num_lora_parameters(
    config: PretrainedConfig, *, rank: int, targets: Sequence[str] | None
) -> int:
    """How many numbers `add_lora` would train; nothing is allocated.

    Raises:
        ConfigError: for a target that is no linear layer inside the model.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    _check_targets(model, targets or ())
    return sum(
        rank * sum(module.weight.shape)
        for name, module in _linear(model).items()
        if targets is None or any(_is_meant(name, target) for target in targets)
    )


def has_lora(lm: CausalLM) -> bool:
    """Whether the model carries an adapter."""
    return bool(_layers(lm))


@contextmanager
def lora_off(lm: CausalLM) -> Generator[None]:
    """The model as it was before the adapter; afterwards all is as it was, whatever happened.

    Raises:
        ModelError: the model carries no adapter.
    """
    layers = list(_layers(lm).values())
    if not layers:
        message = (
            "The model is without an adapter; it must carry one to be switched to its first "
            "weights. Add one (student.lora), or keep a frozen copy."
        )
        raise ModelError(message)
    were_off = [layer.disable_adapters for layer in layers]
    # Switching an adapter also switches its gradients, which is not ours to decide.
    modules = [cast(nn.Module, layer) for layer in layers]
    trained = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(enabled=False)
        yield
    finally:
        for layer, was_off in zip(layers, were_off, strict=True):
            layer.enable_adapters(enabled=not was_off)
        for parameter, was_trained in trained:
            parameter.requires_grad = was_trained


@torch.no_grad()
def moving_weights(lm: CausalLM) -> dict[str, Float[Tensor, "..."]]:
    """What training can change, by the names of the model without an adapter.

    A matrix with an adapter is given as the product it acts as, in float32 or wider; a trained
    weight as it is, not copied.
    """
    found: dict[str, Tensor] = {}
    for name, layer in _layers(lm).items():
        found[f"{name}.weight"] = _product(layer)
    for name, parameter in lm.model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            found[name.replace(".base_layer.", ".")] = parameter.detach()
    return found


@torch.no_grad()
def acting_weights(lm: CausalLM) -> dict[str, Float[Tensor, "..."]]:
    """Every weight as it acts now, by the names of the model without an adapter; a tied one once.

    A matrix whose adapter is switched on is given as their product, in float32 or wider; all
    others as they are, not copied.
    """
    found = {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in lm.model.named_parameters()
        if ".lora_" not in name
    }
    for name, layer in _layers(lm).items():
        if not layer.disable_adapters:
            found[f"{name}.weight"] = _product(layer)
    return found


@torch.no_grad()
def plain_copy(lm: CausalLM) -> CausalLM:
    """A frozen copy in evaluation mode, any adapter merged into it.

    It has its own copy of what training can change, and shares what stays as it is.
    """
    memo: dict[int, Any] = {id(p): p for p in lm.model.parameters() if not p.requires_grad}
    for layer in _layers(lm).values():
        inner = _base(layer)
        plain = deepcopy(inner, {id(p): p for p in inner.parameters()})
        merged = _product(layer).to(inner.weight.dtype)
        plain.weight = nn.Parameter(merged, requires_grad=False)
        memo[id(layer)] = plain
    model = deepcopy(lm.model, memo)
    vars(model).pop("peft_config", None)
    return CausalLM(model, layout=lm.layout).eval().requires_grad_(requires_grad=False)


def save_lora(lm: CausalLM, folder: Path, *, source: str) -> None:
    """Write the adapter alone, as `PeftModel.from_pretrained` reads it.

    Args:
        source: what the model under the adapter was loaded from, for the adapter's config.

    Raises:
        ModelError: the model carries no adapter.
        OutputError: the folder cannot be written.
    """
    if not has_lora(lm):
        message = "The model is without an adapter; it must carry one to save it. Save the model."
        raise ModelError(message)
    config = copy(lm.model.peft_config[_ADAPTER])
    config.base_model_name_or_path = source
    config.inference_mode = True
    state = get_peft_model_state_dict(lm.model, adapter_name=_ADAPTER, save_embedding_layers=False)
    named = {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        message = (
            f"The adapter's folder {folder} cannot be written ({error}); it must be writable and "
            "have room. Choose another folder."
        )
        raise OutputError(message) from error


def _layers(lm: CausalLM) -> dict[str, LoraLayer]:
    return {n: module for n, module in lm.model.named_modules() if isinstance(module, LoraLayer)}


def _base(layer: LoraLayer) -> nn.Linear | Conv1D:
    return cast("nn.Linear | Conv1D", layer.get_base_layer())


def _product(layer: LoraLayer) -> Tensor:
    assert isinstance(layer, Linear)  # noqa: S101  add_lora refuses all others
    weight = _base(layer).weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide) + layer.get_delta_weight(_ADAPTER).to(wide)


def _check_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    linear = _linear(model)
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    every = [name for name, _ in model.named_modules()]
    for target in targets:
        meant = [name for name in every if _is_meant(name, target)]
        if not meant or any(name not in linear for name in meant):
            message = (
                f"student.lora.targets has {target!r}; each must name linear layers inside the "
                f"model and nothing else: {known}. Correct it, or leave targets out to adapt all."
            )
            raise ConfigError(message)


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """What an adapter can stand beside: every linear layer but the head, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name != anatomy_of(model.config).head
    }


def _is_meant(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
