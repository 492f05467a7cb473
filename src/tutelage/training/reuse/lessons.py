"""A row that waits for its step, as plain values for a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from tutelage.core.records import Prompt, Rollout
from tutelage.training.policy import OldTokens


@final
@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A judged rollout, and what must be known of it on each step that it is trained on."""

    rollout: Rollout
    picked: bool = True
    """The teacher is asked about it."""
    old: OldTokens | None = None
    """Its trained tokens before the first step of the batch."""

    def state(self) -> dict[str, Any]:
        """Plain values and tensors. The data's own columns are left out: the judge has been."""
        rollout, prompt = self.rollout, self.rollout.prompt
        return {
            "name": prompt.name,
            "student_ids": list(prompt.student_ids),
            "teacher_ids": None if prompt.teacher_ids is None else list(prompt.teacher_ids),
            "completion_ids": list(rollout.completion_ids),
            "trained": None if rollout.trained is None else list(rollout.trained),
            "source": rollout.source,
            "truncated": rollout.truncated,
            "sampled_logp": None if rollout.sampled_logp is None else list(rollout.sampled_logp),
            "reward": rollout.reward,
            "advantage": rollout.advantage,
            "picked": self.picked,
            "old": None if self.old is None else self.old.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Lesson":
        """What `state` answered with, but for the data's own columns."""

        def known(name: str) -> tuple[Any, ...] | None:
            return None if state[name] is None else tuple(state[name])

        prompt = Prompt(
            student_ids=tuple(state["student_ids"]),
            teacher_ids=known("teacher_ids"),
            name=state["name"],
        )
        rollout = Rollout(
            prompt=prompt,
            completion_ids=tuple(state["completion_ids"]),
            trained=known("trained"),
            source=state["source"],
            truncated=state["truncated"],
            sampled_logp=known("sampled_logp"),
            reward=state["reward"],
            advantage=state["advantage"],
        )
        old = None if state["old"] is None else OldTokens.from_state(state["old"])
        return cls(rollout=rollout, picked=state["picked"], old=old)
