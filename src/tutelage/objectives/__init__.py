"""How far a student is from its teacher: objectives, moved targets, and the only mean."""

from tutelage.objectives.concrete_score import (
    ConcreteScore,
    concrete_score,
    joint_concrete_score,
    sampled_concrete_score,
)
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.direct_logit import DirectLogit
from tutelage.objectives.moved_targets import (
    Budget,
    Move,
    MoveSettings,
    NoMove,
    Taid,
    Tempered,
    budget_t,
    is_inert,
    is_learning_rate_ramp,
    taid,
    tempered,
)
from tutelage.objectives.objective import Divergence, Objective
from tutelage.objectives.reduce import sequence_mean, token_mean, token_weights
from tutelage.objectives.softmax import excluded_mass_of_logits
from tutelage.objectives.top_k import sampled_cross_entropy, top_k_divergence
from tutelage.objectives.union import ObjectiveSettings, WeightedPart, WeightedSum, from_settings

__all__ = [
    "Budget",
    "ConcreteScore",
    "CrossEntropy",
    "DirectLogit",
    "Divergence",
    "Move",
    "MoveSettings",
    "NoMove",
    "Objective",
    "ObjectiveSettings",
    "Taid",
    "Tempered",
    "WeightedPart",
    "WeightedSum",
    "budget_t",
    "concrete_score",
    "excluded_mass_of_logits",
    "from_settings",
    "is_inert",
    "is_learning_rate_ramp",
    "joint_concrete_score",
    "sampled_concrete_score",
    "sampled_cross_entropy",
    "sequence_mean",
    "taid",
    "tempered",
    "token_mean",
    "token_weights",
    "top_k_divergence",
]
