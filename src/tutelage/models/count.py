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
    feed_forward: int
    """Of `layers`, what is in the feed-forward parts, routers included."""
    active_feed_forward: int
    """Of those, what one token uses; all of it where there are no experts."""

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
    blocks = [layer.get_submodule(anatomy.mlp) for layer in layers]
    tied = bool(getattr(config, "tie_word_embeddings", False))
    head = 0 if tied else _count(model.get_submodule(anatomy.head))
    return ParameterCount(
        embedding=embedding,
        layers=in_layers,
        head=head,
        other=total - embedding - in_layers - head,
        num_layers=len(layers),
        feed_forward=sum(_count(block) for block in blocks),
        active_feed_forward=sum(_active(block, config) for block in blocks),
    )


def _active(block: nn.Module, config: PretrainedConfig) -> int:
    """What a token uses of a feed-forward part: of stacked experts only the chosen ones."""
    name = anatomy_of(config).experts
    experts = dict(block.named_children()).get(name) if name is not None else None
    if experts is None:
        return _count(block)
    num_experts = next(experts.parameters()).shape[0]
    num_active = int(config.num_experts_per_tok)
    return _count(block) - _count(experts) * (num_experts - num_active) // num_experts


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
