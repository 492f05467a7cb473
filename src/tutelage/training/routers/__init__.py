"""What moves in a student's routers while it trains: biases, their averages, and what is heard."""

from tutelage.training.routers.owner import RouterOwner
from tutelage.training.routers.settings import (
    ExpertTargetSettings,
    ImportanceLoss,
    LossFreeBalance,
    NoBalance,
    RewardBias,
    RoutingSettings,
    SwitchLoss,
)

__all__ = [
    "ExpertTargetSettings",
    "ImportanceLoss",
    "LossFreeBalance",
    "NoBalance",
    "RewardBias",
    "RouterOwner",
    "RoutingSettings",
    "SwitchLoss",
]
