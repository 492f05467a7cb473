"""The reward for an answer that is the row's, word for word after normalisation."""

from collections.abc import Sequence
from typing import Literal, final

from pydantic import Field
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout, Verdict
from tutelage.core.settings import Settings
from tutelage.rewards.extraction import ExtractionSettings, LastLine, Normalisation
from tutelage.rewards.verifier import Verifier, column_of, name_of, paired


@final
class ExactAnswerSettings(Settings):
    """1 for the row's own answer, 0 for any other and for none."""

    kind: Literal["exact_answer"] = "exact_answer"
    column: str = "answer"
    """Where the row holds its answer: a text, a number, or a list of them, any of which will do."""
    extract: ExtractionSettings = Field(default_factory=LastLine)
    """Where the completion holds its answer."""
    normalise: Normalisation = Field(default_factory=Normalisation)
    """What may differ."""


@final
class ExactAnswer(Verifier):
    """Compares texts; runs nothing and guesses nothing."""

    def __init__(self, settings: ExactAnswerSettings) -> None:
        self._settings = settings

    @override
    def judge(self, rollouts: Sequence[Rollout], texts: Sequence[str]) -> list[Verdict]:
        return [self._judge_one(rollout, text) for rollout, text in paired(rollouts, texts)]

    def _judge_one(self, rollout: Rollout, text: str) -> Verdict:
        accepted = self._accepted(rollout)
        answer = self._settings.extract.answer_in(text)
        if answer is None:
            kind = self._settings.extract.kind
            return Verdict(reward=0.0, parts={"found": 0.0}, note=f"no answer found by {kind}")
        right = self._settings.normalise.of(answer) in accepted
        note = "right" if right else f"answered {answer[:80]!r}"
        return Verdict(reward=float(right), parts={"found": 1.0}, note=note)

    def _accepted(self, rollout: Rollout) -> set[str]:
        column = self._settings.column
        found = column_of(rollout, column, setting="rewards.column")
        answers = found if isinstance(found, list | tuple) else [found]
        for answer in answers:
            if isinstance(answer, bool) or not isinstance(answer, str | int | float):
                raise DataError(
                    f"{name_of(rollout)} has a {type(answer).__name__} in column {column!r}; it "
                    "must be a text, a number or a list of them. Write the answer as a text."
                )
        return {self._settings.normalise.of(str(answer).strip()) for answer in answers}
