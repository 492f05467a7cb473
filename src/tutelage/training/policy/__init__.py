"""Learning from rewards over several steps of one batch: what the old student said, and ratios."""

from tutelage.training.policy.loss import Distilled, PolicyLoss, PolicyShare
from tutelage.training.policy.measures import MEASURES, named_measures
from tutelage.training.policy.old import OldTokens
from tutelage.training.policy.routers import Routes, Routings, Tap, WatchRouters

__all__ = [
    "MEASURES",
    "Distilled",
    "OldTokens",
    "PolicyLoss",
    "PolicyShare",
    "Routes",
    "Routings",
    "Tap",
    "WatchRouters",
    "named_measures",
]
