"""Hidden states and heads in, nats and gradients out: every objective without full logits."""

from tutelage.objectives.fused.differentiable import fused_loss, fused_per_token
from tutelage.objectives.fused.measures import excluded_mass_of_hidden, fused_measures
from tutelage.objectives.fused.options import FusedLoss, FusedOptions, Measures
from tutelage.objectives.fused.scores import labels_only
from tutelage.objectives.fused.scratch import release_scratch

__all__ = [
    "FusedLoss",
    "FusedOptions",
    "Measures",
    "excluded_mass_of_hidden",
    "fused_loss",
    "fused_measures",
    "fused_per_token",
    "labels_only",
    "release_scratch",
]
