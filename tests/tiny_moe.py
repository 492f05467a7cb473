"""Tiny mixtures of experts of the three families, and rows for them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from tests.tiny_models import SIZES, build
from tutelage.core.records import View
from tutelage.models import CausalLM, Layout, save_model
from tutelage.recipes.toy import byte_tokenizer

LENGTHS = (5, 11, 3, 3, 17, 1)
NUM_EXPERTS, NUM_CHOSEN = 4, 2
_QWEN = {
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": NUM_CHOSEN,
    "moe_intermediate_size": 16,
}
_CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "mixtral": (MixtralConfig, {"num_local_experts": NUM_EXPERTS, "intermediate_size": 16}),
    "qwen2_moe": (Qwen2MoeConfig, {**_QWEN, "shared_expert_intermediate_size": 8}),
    "qwen3_moe": (Qwen3MoeConfig, {**_QWEN, "head_dim": 8}),
}
FAMILIES = sorted(_CONFIGS)


def tiny_moe_model(family: str = "mixtral", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    kind, own = _CONFIGS[family]
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    return build(kind(**{**sizes, **own, **overrides}), seed=seed)


def tiny_moe(
    family: str = "mixtral", *, layout: Layout = "packed", seed: int = 0, **overrides: Any
) -> CausalLM:
    """Two layers with four experts each, two a token."""
    return CausalLM(tiny_moe_model(family, seed, **overrides), layout=layout)


def ragged_view(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> View:
    """Rows of different lengths, end to end."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 256, (n,), generator=generator) for n in lengths]
    return View(
        input_ids=torch.cat(rows),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        row_starts=torch.tensor([0, *lengths]).cumsum(0),
        predicts=torch.arange(0),
    )


def some_biases(num_layers: int = 2, *, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return scale * torch.randn(num_layers, NUM_EXPERTS, generator=generator)


def moe_folder(folder: Path) -> str:
    """A saved tiny Mixtral that speaks the toy teacher's language, and its experts' targets."""
    tokenizer = byte_tokenizer()
    lm = tiny_moe(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    save_model(lm, tokenizer, folder)
    shares = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    save_file({"shares": shares}, folder / "expert_targets.safetensors")
    return str(folder)
