"""AdamW as this package sets it up: fused, and decaying only what should decay."""

from typing import Any

import torch
from torch import nn

from tutelage.core.errors import ModelError
from tutelage.training.settings import TrainingSettings


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the trainable weights, its learning rate left for the clock to set.

    Matrices decay, vectors do not: a norm's weight or a bias pulled towards zero would change
    what the layer computes, not how large its weights grow.

    Raises:
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
    decaying = [p for p in trainable.values() if p.dim() > 1]
    exempt = [p for p in trainable.values() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": settings.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the clock's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
