"""What an answer is worth: verifiers that judge rollouts, and advantages within a group."""

from tutelage.rewards.advantages import AdvantageSettings, group_advantages
from tutelage.rewards.answer_format import FormatSettings
from tutelage.rewards.code_tests import CodeTestsSettings
from tutelage.rewards.exact_answer import ExactAnswerSettings
from tutelage.rewards.extraction import (
    Boxed,
    ExtractionSettings,
    LastLine,
    Normalisation,
    Pattern,
    Tag,
    Whole,
)
from tutelage.rewards.math_answer import MathAnswerSettings
from tutelage.rewards.reasoning_gym import ReasoningGymSettings
from tutelage.rewards.sandbox import Limits
from tutelage.rewards.settings import (
    RewardSettings,
    WeightedReward,
    WeightedSumSettings,
    make_verifier,
)
from tutelage.rewards.verifier import Verifier

__all__ = [
    "AdvantageSettings",
    "Boxed",
    "CodeTestsSettings",
    "ExactAnswerSettings",
    "ExtractionSettings",
    "FormatSettings",
    "LastLine",
    "Limits",
    "MathAnswerSettings",
    "Normalisation",
    "Pattern",
    "ReasoningGymSettings",
    "RewardSettings",
    "Tag",
    "Verifier",
    "WeightedReward",
    "WeightedSumSettings",
    "Whole",
    "group_advantages",
    "make_verifier",
]
