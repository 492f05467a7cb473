"""How far a student is from its teacher: objectives, moved targets, and the only mean."""

from tutelage.objectives.moved_targets import (
    Budget,
    Move,
    MoveSettings,
    NoMove,
    Taid,
    Tempered,
)
from tutelage.objectives.objective import Divergence, Objective
from tutelage.objectives.union import ObjectiveSettings, from_settings

__all__ = [
    "Budget",
    "Divergence",
    "Move",
    "MoveSettings",
    "NoMove",
    "Objective",
    "ObjectiveSettings",
    "Taid",
    "Tempered",
    "from_settings",
]
