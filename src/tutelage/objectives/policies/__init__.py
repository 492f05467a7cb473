"""How rewards steer several optimiser steps on one batch of completions: ratios and their clips."""

from tutelage.objectives.policies.drift import log_router_drift
from tutelage.objectives.policies.policy import Distill, DrawnTokens, Drift, Policy, Surrogate
from tutelage.objectives.policies.sequence_ratio import Gmpo, Gspo, Rspo
from tutelage.objectives.policies.token_ratio import DrGrpo, Grpo, PrGrpo
from tutelage.objectives.policies.union import PolicySettings

__all__ = [
    "Distill",
    "DrGrpo",
    "DrawnTokens",
    "Drift",
    "Gmpo",
    "Grpo",
    "Gspo",
    "Policy",
    "PolicySettings",
    "PrGrpo",
    "Rspo",
    "Surrogate",
    "log_router_drift",
]
