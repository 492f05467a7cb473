"""Rollouts around a row of data, for tests of what judges them."""

from typing import Any

from tutelage.core.records import Prompt, Rollout, Verdict
from tutelage.rewards import RewardSettings, make_verifier


def rollout_of(row: dict[str, Any], *, truncated: bool = False, length: int = 3) -> Rollout:
    prompt = Prompt(student_ids=(1, 2), row=row, name="rows.jsonl:7")
    return Rollout(
        prompt=prompt,
        completion_ids=tuple(range(length)),
        source="student",
        truncated=truncated,
    )


def judged(settings: RewardSettings, row: dict[str, Any], *texts: str) -> list[Verdict]:
    """What the verifier of these settings says of several completions for one row."""
    return make_verifier(settings).judge([rollout_of(row)] * len(texts), texts)


def rewards_of(settings: RewardSettings, row: dict[str, Any], *texts: str) -> list[float]:
    return [verdict.reward for verdict in judged(settings, row, *texts)]
