"""The union of all rewards, sums of them, and the only way from settings to a verifier."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, assert_never, final

from annotated_types import MinLen
from pydantic import Field

from tutelage.core.settings import Settings
from tutelage.rewards.answer_format import Format, FormatSettings
from tutelage.rewards.code_tests import CodeTests, CodeTestsSettings
from tutelage.rewards.exact_answer import ExactAnswer, ExactAnswerSettings
from tutelage.rewards.math_answer import MathAnswer, MathAnswerSettings
from tutelage.rewards.reasoning_gym import ReasoningGym, ReasoningGymSettings
from tutelage.rewards.verifier import Verifier
from tutelage.rewards.weighted_sum import WeightedSum


@final
class WeightedReward(Settings):
    """One reward of a sum, and what it counts."""

    weight: float
    """Multiplies the reward; below zero it is a penalty."""
    reward: "RewardSettings"
    """Any reward, with its own settings."""


@final
class WeightedSumSettings(Settings):
    """Several rewards as one number; the weights need not add up to 1."""

    kind: Literal["weighted_sum"] = "weighted_sum"
    parts: Annotated[Mapping[str, WeightedReward], MinLen(1)]
    """What is added up, each under a name of your own for the log."""


RewardSettings: TypeAlias = Annotated[
    ExactAnswerSettings
    | MathAnswerSettings
    | ReasoningGymSettings
    | CodeTestsSettings
    | FormatSettings
    | WeightedSumSettings,
    Field(discriminator="kind"),
]
"""Any reward, as a field of a tree of settings."""

WeightedReward.model_rebuild()
WeightedSumSettings.model_rebuild()


def make_verifier(settings: RewardSettings) -> Verifier:
    """The verifier that these settings describe.

    Raises:
        MissingDependencyError: the reward needs a package that is not installed.
        ConfigError: this machine cannot grant what the settings ask for.
    """
    match settings:
        case ExactAnswerSettings():
            return ExactAnswer(settings)
        case MathAnswerSettings():
            return MathAnswer(settings)
        case ReasoningGymSettings():
            return ReasoningGym(settings)
        case CodeTestsSettings():
            return CodeTests(settings)
        case FormatSettings():
            return Format(settings)
        case WeightedSumSettings():
            parts = settings.parts.items()
            return WeightedSum(
                {name: (part.weight, make_verifier(part.reward)) for name, part in parts}
            )
        case _:
            assert_never(settings)
