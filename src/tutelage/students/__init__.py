"""Where students come from: loaded models, depth-pruned copies of a teacher, fresh small ones."""

from tutelage.students.build import build_student, freeze
from tutelage.students.fresh import fresh_config, fresh_model
from tutelage.students.prune import (
    block_influence,
    choose_layers,
    layers_by_influence,
    prune_layers,
)
from tutelage.students.settings import (
    FreshStudent,
    LoadedStudent,
    PrunedStudent,
    StudentSettings,
)

__all__ = [
    "FreshStudent",
    "LoadedStudent",
    "PrunedStudent",
    "StudentSettings",
    "block_influence",
    "build_student",
    "choose_layers",
    "freeze",
    "fresh_config",
    "fresh_model",
    "layers_by_influence",
    "prune_layers",
]
