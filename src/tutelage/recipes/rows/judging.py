"""Rewards and advantages for the completions of a step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Rollout
from tutelage.evaluation import judged
from tutelage.recipes.config import Recipe
from tutelage.rewards import AdvantageSettings, Verifier, group_advantages, make_verifier
from tutelage.rollouts import WritingSettings


@final
class GroupJudge:
    """Judges completions, and compares each with the others that answer the same prompt.

    Args:
        group_size: completions of one prompt, which lie side by side; 1 compares nothing.
    """

    def __init__(
        self,
        verifier: Verifier,
        tokenizer: PreTrainedTokenizerBase,
        *,
        group_size: int,
        advantages: AdvantageSettings,
    ) -> None:
        self._verifier = verifier
        self._tokenizer = tokenizer
        self._group_size = group_size
        self._settings = advantages

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The same rollouts with their rewards, and with advantages where there are groups."""
        found = judged(rollouts, self._verifier, self._tokenizer)
        if self._group_size == 1:
            return found
        rewards = torch.tensor([row.reward for row in found], dtype=torch.float64)
        advantages: list[float] = group_advantages(
            rewards,
            torch.arange(len(found)) // self._group_size,
            normalise=self._settings.normalise,
            deviation=self._settings.deviation,
            eps=self._settings.eps,
        ).tolist()
        return [replace(r, advantage=a) for r, a in zip(found, advantages, strict=True)]


def make_judge(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> GroupJudge | None:
    """Who judges what models write in training; None where nobody is asked to, or none writes."""
    settings = recipe.rollouts
    if recipe.reward is None or not isinstance(settings, WritingSettings):
        return None
    return GroupJudge(
        make_verifier(recipe.reward),
        tokenizer,
        group_size=settings.completions_per_prompt,
        advantages=recipe.advantages,
    )
