"""What learning from the student's own tokens asks for: one objective, and weights for tokens."""

from tutelage.objectives.on_policy.importance import (
    importance_weights,
    sequence_importance_weights,
)
from tutelage.objectives.on_policy.policy_gradient import PolicyGradient
from tutelage.objectives.on_policy.positions import position_weights, without_first, without_ids
from tutelage.objectives.on_policy.returns import return_to_go
from tutelage.objectives.on_policy.sampled_token import SampledToken, sampled_log_ratio
from tutelage.objectives.on_policy.weighting import (
    ImportanceSettings,
    TokenWeighting,
    token_advantages,
)

__all__ = [
    "ImportanceSettings",
    "PolicyGradient",
    "SampledToken",
    "TokenWeighting",
    "importance_weights",
    "position_weights",
    "return_to_go",
    "sampled_log_ratio",
    "sequence_importance_weights",
    "token_advantages",
    "without_first",
    "without_ids",
]
