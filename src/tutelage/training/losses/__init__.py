"""What a step minimises: the student and its loss in one module, and what it cannot be asked."""

from tutelage.training.losses.contradictions import (
    Wanted,
    kind_of,
    policy_contradictions,
    refuse_contradictions,
)
from tutelage.training.losses.drift import Drift, drift_numbers, drift_of
from tutelage.training.losses.module import Comparison, Drawing, LossModule
from tutelage.training.losses.shares import share_numbers

__all__ = [
    "Comparison",
    "Drawing",
    "Drift",
    "LossModule",
    "Wanted",
    "drift_numbers",
    "drift_of",
    "kind_of",
    "policy_contradictions",
    "refuse_contradictions",
    "share_numbers",
]
