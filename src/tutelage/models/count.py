"""How large a model is, from its config alone: nothing is allocated."""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tutelage.models.anatomy import anatomy_of, layers_of


@final
@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers in the weights; the parts add up to the total."""

    embedding: int
    layers: int
    head: int
    """0 when it is tied to the embedding."""
    other: int
    """Norms outside the layers, learned positions."""
    num_layers: int

    @property
    def total(self) -> int:
        """All weights, a tied one once."""
        return self.embedding + self.layers + self.head + self.other


def parameter_count(config: PretrainedConfig) -> ParameterCount:
    """Count the weights of the config's model, part by part."""
    anatomy = anatomy_of(config)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    total = _count(model)
    embedding = _count(model.get_submodule(anatomy.embedding))
    layers = layers_of(model)
    in_layers = _count(layers)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    head = 0 if tied else _count(model.get_submodule(anatomy.head))
    return ParameterCount(
        embedding=embedding,
        layers=in_layers,
        head=head,
        other=total - embedding - in_layers - head,
        num_layers=len(layers),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
