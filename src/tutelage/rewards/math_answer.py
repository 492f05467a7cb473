"""The reward for a mathematical answer that equals the row's, however it is written."""

from collections.abc import Sequence
from typing import Literal, final

from pydantic import PositiveInt
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout, Verdict
from tutelage.core.settings import Settings
from tutelage.rewards.extraction import Boxed
from tutelage.rewards.sandbox import IsolationChoice, Scorer, chosen_isolation
from tutelage.rewards.verifier import Verifier, column_of, name_of, paired


@final
class MathAnswerSettings(Settings):
    r"""1 for an answer that math-verify finds equal to the row's: `\frac{1}{2}` is `0.5`."""

    kind: Literal["math_answer"] = "math_answer"
    column: str = "answer"
    """Where the row holds its answer: LaTeX, a plain expression, or a number."""
    extract: Literal["last_box", "anywhere"] = "last_box"
    r"""`last_box` reads the last `\boxed{...}` and nothing else; `anywhere` lets math-verify look
    for boxes, formulas and numbers in all of the completion."""
    cpu_seconds: PositiveInt = 5
    """For reading and comparing one answer; one that takes longer is wrong."""
    isolation: IsolationChoice = "best"
    """How far the process is cut off that does so: as for `code_tests`."""


@final
class MathAnswer(Verifier):
    """Asks math-verify, in a process of its own: what an answer makes it compute may never end.

    Source: math-verify, Hugging Face, github.com/huggingface/Math-Verify.
    """

    def __init__(self, settings: MathAnswerSettings) -> None:
        self._settings = settings
        self._box = Boxed()
        self.isolation = chosen_isolation(settings.isolation)
        self._scorer = Scorer("math_verify", self.isolation, cpu_seconds=settings.cpu_seconds)

    @override
    def judge(self, rollouts: Sequence[Rollout], texts: Sequence[str]) -> list[Verdict]:
        work = [(r, self._gold(r), self._answer(text)) for r, text in paired(rollouts, texts)]
        return [self._judge_one(*one) for one in work]

    def _judge_one(self, rollout: Rollout, gold: str, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict(reward=0.0, parts={"found": 0.0}, note="no boxed answer")
        (said,) = self._scorer.ask([{"gold": gold, "answer": answer}])
        if "trouble" in said:
            note = f"not judged: {said['trouble']}"
            return Verdict(reward=0.0, parts={"found": 1.0, "trouble": 1.0}, note=note)
        value = said["value"]
        if not value["gold"]:
            raise DataError(
                f"{name_of(rollout)} has {gold[:80]!r} in column {self._settings.column!r}; it "
                "must be an expression that math-verify can read. Correct the row, or use "
                "exact_answer."
            )
        right = float(value["right"])
        note = "right" if right else f"answered {answer[:80]!r}"
        return Verdict(reward=right, parts={"found": float(value["found"])}, note=note)

    def _gold(self, rollout: Rollout) -> str:
        column = self._settings.column
        gold = str(column_of(rollout, column, setting="rewards.column")).strip()
        return gold if "\\boxed" in gold or "$" in gold else f"\\boxed{{{gold}}}"

    def _answer(self, text: str) -> str | None:
        if self._settings.extract == "anywhere":
            return text
        answer = self._box.answer_in(text)
        return None if answer is None else f"\\boxed{{{answer}}}"
