"""How far a student is from its teacher: objectives, moved targets, and the only mean."""

from tutelage.objectives.clip_measures import (
    ClipMeasures,
    clip_measures,
    clipped_entries,
    overlap_ratio,
    reversed_top,
)
from tutelage.objectives.concrete_score import (
    ConcreteScore,
    concrete_score,
    joint_concrete_score,
    sampled_concrete_score,
)
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.cross_vocabulary import (
    ULD,
    AlignedKL,
    Bridge,
    CrossVocabulary,
    DualSpace,
)
from tutelage.objectives.direct_logit import DirectLogit
from tutelage.objectives.entries import ClipSettings, TopSupport
from tutelage.objectives.moved_targets import (
    Budget,
    Move,
    MoveSettings,
    NoMove,
    RewardTemperature,
    Taid,
    Tempered,
    budget_t,
    is_inert,
    is_learning_rate_ramp,
    reward_temperature,
    taid,
    tempered,
)
from tutelage.objectives.objective import Divergence, Objective
from tutelage.objectives.on_policy import (
    PolicyGradient,
    SampledToken,
    TokenWeighting,
    importance_weights,
    position_weights,
    return_to_go,
    sequence_importance_weights,
    token_advantages,
    without_first,
    without_ids,
)
from tutelage.objectives.partial import Answer, refusal, sampled_cross_entropy, top_k_divergence
from tutelage.objectives.reduce import sequence_mean, token_mean, token_weights
from tutelage.objectives.softmax import excluded_mass_of_logits
from tutelage.objectives.union import ObjectiveSettings, WeightedPart, WeightedSum, from_settings

__all__ = [
    "ULD",
    "AlignedKL",
    "Answer",
    "Bridge",
    "Budget",
    "ClipMeasures",
    "ClipSettings",
    "ConcreteScore",
    "CrossEntropy",
    "CrossVocabulary",
    "DirectLogit",
    "Divergence",
    "DualSpace",
    "Move",
    "MoveSettings",
    "NoMove",
    "Objective",
    "ObjectiveSettings",
    "PolicyGradient",
    "RewardTemperature",
    "SampledToken",
    "Taid",
    "Tempered",
    "TokenWeighting",
    "TopSupport",
    "WeightedPart",
    "WeightedSum",
    "budget_t",
    "clip_measures",
    "clipped_entries",
    "concrete_score",
    "excluded_mass_of_logits",
    "from_settings",
    "importance_weights",
    "is_inert",
    "is_learning_rate_ramp",
    "joint_concrete_score",
    "overlap_ratio",
    "position_weights",
    "refusal",
    "return_to_go",
    "reversed_top",
    "reward_temperature",
    "sampled_concrete_score",
    "sampled_cross_entropy",
    "sequence_importance_weights",
    "sequence_mean",
    "taid",
    "tempered",
    "token_advantages",
    "token_mean",
    "token_weights",
    "top_k_divergence",
    "without_first",
    "without_ids",
]
