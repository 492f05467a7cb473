"""Where students come from: loaded, cut out of a teacher, its neurons as experts, or new."""

from tutelage.students.build import build_student, freeze, wants_calibration
from tutelage.students.fresh import fresh_config, fresh_model
from tutelage.students.moe import (
    Rerouting,
    Upcycled,
    all_experts,
    counted,
    equal_gate,
    make_upcycled,
    mean_activations,
    routers_of,
    shape_of,
    target_shares,
    upcycled_config,
)
from tutelage.students.prune import (
    block_influence,
    choose_layers,
    layers_by_influence,
    prune_layers,
)
from tutelage.students.reroute import RoutedLayer, reroute
from tutelage.students.settings import (
    FreshStudent,
    LoadedStudent,
    LoraSettings,
    PrunedStudent,
    ReroutedStudent,
    StudentSettings,
    UpcycledStudent,
    lora_of,
)
from tutelage.students.width import (
    check_width,
    choose_neurons,
    neuron_importance,
    prune_neurons,
)

__all__ = [
    "FreshStudent",
    "LoadedStudent",
    "LoraSettings",
    "PrunedStudent",
    "ReroutedStudent",
    "Rerouting",
    "RoutedLayer",
    "StudentSettings",
    "Upcycled",
    "UpcycledStudent",
    "all_experts",
    "block_influence",
    "build_student",
    "check_width",
    "choose_layers",
    "choose_neurons",
    "counted",
    "equal_gate",
    "freeze",
    "fresh_config",
    "fresh_model",
    "layers_by_influence",
    "lora_of",
    "make_upcycled",
    "mean_activations",
    "neuron_importance",
    "prune_layers",
    "prune_neurons",
    "reroute",
    "routers_of",
    "shape_of",
    "target_shares",
    "upcycled_config",
    "wants_calibration",
]
