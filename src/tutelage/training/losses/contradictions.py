"""What cannot be combined in a step, whoever asks for it: a recipe or Python."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from tutelage.core.errors import ConfigError
from tutelage.objectives import Move, NoMove, Objective
from tutelage.objectives.policies import DrGrpo, Policy
from tutelage.objectives.policies.token_ratio import TokenRatioPolicy
from tutelage.training.settings import TrainingSettings
from tutelage.training.state_tree import dotted


@final
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a trainer was asked to do."""

    objective: Objective
    move: Move
    policy: Policy | None
    settings: TrainingSettings
    has_routers: bool

    def identity(self) -> dict[str, Any]:
        """What a resumed run must agree on, by dotted name."""
        policy = self.policy
        return {
            **dotted("training", self.settings.shaping()),
            **dotted("objective", self.objective.model_dump(mode="json")),
            **dotted("move", self.move.model_dump(mode="json")),
            **({} if policy is None else dotted("policy", policy.model_dump(mode="json"))),
        }


def refuse_contradictions(wanted: Wanted, *, has_teacher: bool) -> None:
    """Refuse what would be ignored, or would silently be another method.

    Raises:
        ConfigError: the first contradiction.
    """
    _refuse_no_teacher(wanted, has_teacher=has_teacher)
    policy = wanted.policy
    if policy is None:
        return
    for line in policy_contradictions(policy, wanted.settings):
        raise ConfigError(line)
    if policy.needs_routers and not wanted.has_routers:
        raise ConfigError(
            f"policy.kind is {kind_of(policy)}, which looks at the student's routers"
            f"{' to replay them' if policy.replay_routing else ''}, and this student has none; it "
            "must be a mixture of experts. Use grpo (or gmpo) for a dense student, without "
            "replay_routing."
        )


def _refuse_no_teacher(wanted: Wanted, *, has_teacher: bool) -> None:
    wants_teacher = wanted.objective.needs_teacher
    objective, move = type(wanted.objective).__name__, type(wanted.move).__name__
    if wants_teacher and not has_teacher:
        raise ConfigError(
            f"The objective is {objective}, which compares with a teacher, "
            "and teacher is missing; there must be one. Name a teacher, or train with "
            "cross_entropy on the completions' own tokens."
        )
    if not wants_teacher and not isinstance(wanted.move, NoMove):
        raise ConfigError(
            f"move is {move}, and {objective} looks at "
            "no teacher whose target could move; it must be none. Remove it, or choose an "
            "objective that compares with the teacher."
        )


def policy_contradictions(policy: Policy, settings: TrainingSettings) -> Iterator[str]:
    """One line each, of the policy and the training settings alone."""
    importance = settings.weighting.importance
    by_token = importance is not None and importance.level == "token"
    if by_token and not isinstance(policy, TokenRatioPolicy):
        yield (
            f"training.weighting.importance.level is token with policy.kind {kind_of(policy)}, "
            "which weighs whole completions; it must be sequence. Change it."
        )
    if not isinstance(policy, DrGrpo) and "reduction" not in settings.model_fields_set:
        yield (
            f"training.reduction is not given, and {kind_of(policy)} needs a word on it: it must "
            "be sequence_mean (the mean over completions of the mean over their tokens, as in the "
            "paper) or token_mean (as in DAPO). Name one."
        )


def kind_of(policy: Policy) -> str:
    """What its settings call it."""
    return str(type(policy).model_fields["kind"].default)
