"""Several rewards as one number."""

import math
from collections.abc import Mapping, Sequence
from typing import final

from typing_extensions import override

from tutelage.core.records import Rollout, Verdict
from tutelage.rewards.verifier import Verifier


@final
class WeightedSum(Verifier):
    """Adds up what several verifiers say, each with its weight.

    A verdict's parts hold every verifier's own reward, before its weight, under the verifier's
    name, and what that reward was made of under `name.part`.

    Args:
        verifiers: by name, each with what it counts; a weight below zero is a penalty.
    """

    def __init__(self, verifiers: Mapping[str, tuple[float, Verifier]]) -> None:
        self._verifiers = dict(verifiers)

    @override
    def judge(self, rollouts: Sequence[Rollout], texts: Sequence[str]) -> list[Verdict]:
        columns = {
            name: verifier.judge(rollouts, texts) for name, (_, verifier) in self._verifiers.items()
        }
        return [
            self._added_up({name: verdicts[place] for name, verdicts in columns.items()})
            for place in range(len(rollouts))
        ]

    def _added_up(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        parts: dict[str, float] = {}
        for name, verdict in verdicts.items():
            parts[name] = verdict.reward
            parts.update({f"{name}.{part}": value for part, value in verdict.parts.items()})
        return Verdict(
            # Exact, so that equal verdicts give equal sums in whatever order they were named.
            reward=math.fsum(self._verifiers[name][0] * v.reward for name, v in verdicts.items()),
            parts=parts,
            note="; ".join(f"{name}: {v.note}" for name, v in verdicts.items() if v.note),
        )
