"""AdamW as this package sets it up: fused, and decaying only what should decay."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tutelage.core.errors import ConfigError, ModelError
from tutelage.training.settings import TrainingSettings

FACTOR = "learning_rate_factor"
"""Where a group of AdamW's keeps what its learning rate is multiplied by."""


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the trainable weights, its learning rate left for the clock to set.

    Matrices decay, vectors do not: a norm's weight or a bias pulled towards zero would change
    what the layer computes, not how large its weights grow.

    Raises:
        ConfigError: a learning rate's pattern matches nothing that is trained.
        ModelError: nothing can be trained, or a trainable weight is kept in half precision, where
            most updates are too small to change it.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        message = (
            "The student has no trainable weights; at least one must require a gradient. "
            "Unfreeze some of its layers."
        )
        raise ModelError(message)
    for name, parameter in trainable.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            message = (
                f"The student's {name} is {_word(parameter.dtype)}; trained weights must be "
                "float32. Load the student with dtype float32 and set training.precision to bf16 "
                "to compute in bfloat16."
            )
            raise ModelError(message)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    factors = _factors(trainable, settings)
    for name, parameter in trainable.items():
        decay = settings.weight_decay if parameter.dim() > 1 else 0.0
        empty = {"params": [], "weight_decay": decay, FACTOR: factors[name]}
        groups.setdefault((factors[name], decay), empty)["params"].append(parameter)
    return torch.optim.AdamW(
        list(groups.values()),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the clock's learning rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[FACTOR]


def _factors(names: Iterable[str], settings: TrainingSettings) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by.

    The settings speak of a transformers model's names, without the wrapper around it.
    """
    found = dict.fromkeys(names, 1.0)
    open_ = set(found)
    for pattern, factor in settings.learning_rate_factors.items():
        matched = {n for n in found if fnmatch.fnmatchcase(n.removeprefix("model."), pattern)}
        if not matched:
            example = next(iter(found)).removeprefix("model.")
            message = (
                f"training.learning_rate_factors has {pattern!r}, which no trained parameter "
                f"matches; it must match some, such as {example}. Correct the pattern."
            )
            raise ConfigError(message)
        found.update(dict.fromkeys(matched & open_, factor))
        open_ -= matched
    return found


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
