"""How active the experts of a new model should be, written beside it for its warm-up."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM
from tutelage.recipes.routing import TARGETS
from tutelage.students import Upcycled, mean_activations, target_shares
from tutelage.training.routers import ExpertTargetSettings


def write_targets(
    folder: Path, made: Upcycled, dense: CausalLM, calibration: Sequence[TokenBatch]
) -> Path:
    """The file that `routing.targets` looks for: one row a layer, one column an expert.

    The shares are those of the dense model's own neurons, at the temperature that
    `routing.targets` has by default.

    Source: PADD, arXiv:2606.10369, equation 2.
    """
    xi = ExpertTargetSettings().temperature
    activities = mean_activations(dense, calibration)
    shares = [
        target_shares(activity, groups.experts, xi=xi)
        for activity, groups in zip(activities, made.groups, strict=True)
    ]
    path = folder / TARGETS
    save_file({"shares": torch.stack(shares).float().contiguous()}, path)
    return path
