"""Mixtures of experts made of dense models: neurons, which of them share an expert, routers."""

from tutelage.students.moe.activations import (
    Activation,
    inputs_of,
    mean_activations,
    share_divergence,
    strongest_marks,
    target_shares,
)
from tutelage.students.moe.making import Upcycled, look_over, make_upcycled, needs_calibration
from tutelage.students.moe.neurons import (
    FeedForward,
    feed_forward_blocks,
    feed_forwards,
    group_means,
    neuron_rows,
    teacher_layer,
)
from tutelage.students.moe.ridge import RidgeFit, fitted_rows
from tutelage.students.moe.router_rows import centroid_rows, rescaled
from tutelage.students.moe.settings import (
    CentroidRouter,
    ClusteredSplit,
    CoActivationSplit,
    ContiguousSplit,
    Copies,
    DropCopies,
    FittedRouter,
    RandomRouter,
    RandomSplit,
    Rerouting,
    Upcycling,
    ZeroRouter,
)
from tutelage.students.moe.shape import ExpertShape, shape_of, upcycled_config
from tutelage.students.moe.splits import clustered
from tutelage.students.moe.upcycle import Groups, equal_gate, gate_scale, upcycle
from tutelage.students.moe.watching import all_experts, counted, routers_of

__all__ = [
    "Activation",
    "CentroidRouter",
    "ClusteredSplit",
    "CoActivationSplit",
    "ContiguousSplit",
    "Copies",
    "DropCopies",
    "ExpertShape",
    "FeedForward",
    "FittedRouter",
    "Groups",
    "RandomRouter",
    "RandomSplit",
    "Rerouting",
    "RidgeFit",
    "Upcycled",
    "Upcycling",
    "ZeroRouter",
    "all_experts",
    "centroid_rows",
    "clustered",
    "counted",
    "equal_gate",
    "feed_forward_blocks",
    "feed_forwards",
    "fitted_rows",
    "gate_scale",
    "group_means",
    "inputs_of",
    "look_over",
    "make_upcycled",
    "mean_activations",
    "needs_calibration",
    "neuron_rows",
    "rescaled",
    "routers_of",
    "shape_of",
    "share_divergence",
    "strongest_marks",
    "target_shares",
    "teacher_layer",
    "upcycle",
    "upcycled_config",
]
