"""What can be said of a router's choices, and how a bias on them is moved: tensors in and out."""

from tutelage.routing.alignment import (
    expert_class_counts,
    expert_specialisation,
    mutual_information,
    normalised_mutual_information,
)
from tutelage.routing.auxiliary import importance_cv_squared, switch_loss
from tutelage.routing.balance import (
    Sign,
    advantage_sums,
    capped,
    expert_advantage,
    loss_free_bias,
    moved_bias,
    moving_average,
    without_start,
)
from tutelage.routing.load import (
    assignment_counts,
    expert_load,
    max_violation,
    num_dead,
    router_entropy,
)
from tutelage.routing.shift import expert_consistency, routing_shift
from tutelage.routing.warm_up import activity_loss, activity_shares

__all__ = [
    "Sign",
    "activity_loss",
    "activity_shares",
    "advantage_sums",
    "assignment_counts",
    "capped",
    "expert_advantage",
    "expert_class_counts",
    "expert_consistency",
    "expert_load",
    "expert_specialisation",
    "importance_cv_squared",
    "loss_free_bias",
    "max_violation",
    "moved_bias",
    "moving_average",
    "mutual_information",
    "normalised_mutual_information",
    "num_dead",
    "router_entropy",
    "routing_shift",
    "switch_loss",
    "without_start",
]
