"""How active the experts of a new model should be, written beside it for its warm-up."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from tutelage.recipes.routing import TARGETS
from tutelage.students import target_shares
from tutelage.training.routers import ExpertTargetSettings


def write_targets(
    folder: Path,
    activities: Sequence[Float[Tensor, " F"]],
    experts: Sequence[Sequence[Int[Tensor, " _"]]],
) -> Path:
    """The file that `routing.targets` looks for: one row a layer, one column an expert.

    The shares are those of the dense model's own neurons, at the temperature that
    `routing.targets` has by default.

    Args:
        activities: for each layer, the mean activation of each of the dense model's neurons.
        experts: for each layer, the neurons behind each expert.

    Source: PADD, arXiv:2606.10369, equation 2.
    """
    xi = ExpertTargetSettings().temperature
    shares = [
        target_shares(activity, groups, xi=xi)
        for activity, groups in zip(activities, experts, strict=True)
    ]
    path = folder / TARGETS
    save_file({"shares": torch.stack(shares).float().contiguous()}, path)
    return path
