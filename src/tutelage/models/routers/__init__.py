"""The routers of mixture-of-experts models: biased, ordered, heard, and kept on disk."""

from tutelage.models.routers.control import (
    ExpertListener,
    Order,
    Replay,
    Route,
    RouterControl,
    RouterListener,
    UniformDense,
    UniformSample,
)
from tutelage.models.routers.fold import FoldReport, fold_biases
from tutelage.models.routers.install import (
    biases_of,
    checkpointing_options,
    control_of,
    freeze_all_but_experts,
    freeze_routers,
    has_experts,
    install_biased_routers,
    routers_of,
    set_biases,
)
from tutelage.models.routers.keep import has_bias
from tutelage.models.routers.router import BIAS, BiasedRouter, TakesPartIn
from tutelage.models.routers.tap import Routed, RouterTap

__all__ = [
    "BIAS",
    "BiasedRouter",
    "ExpertListener",
    "FoldReport",
    "Order",
    "Replay",
    "Route",
    "Routed",
    "RouterControl",
    "RouterListener",
    "RouterTap",
    "TakesPartIn",
    "UniformDense",
    "UniformSample",
    "biases_of",
    "checkpointing_options",
    "control_of",
    "fold_biases",
    "freeze_all_but_experts",
    "freeze_routers",
    "has_bias",
    "has_experts",
    "install_biased_routers",
    "routers_of",
    "set_biases",
]
