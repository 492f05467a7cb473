"""The reward that a reasoning-gym task itself gives an answer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, final

from pydantic import Field, PositiveInt
from typing_extensions import override

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Rollout, Verdict
from tutelage.core.settings import Settings
from tutelage.rewards.extraction import ExtractionSettings, Tag
from tutelage.rewards.sandbox import IsolationChoice, Scorer, chosen_isolation
from tutelage.rewards.verifier import Verifier, column_of, name_of, paired


@final
class ReasoningGymSettings(Settings):
    """From 0 to 1, by the scorer of the task that the row was made by."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str | None = None
    """The task's name, such as gsm_symbolic; null reads `source_dataset` in the row's metadata."""
    answer_column: str = "answer"
    """Where the row holds the task's own answer."""
    metadata_column: str = "metadata"
    """Where the row holds what else the scorer needs, as an object or as JSON text."""
    extract: ExtractionSettings = Field(default_factory=Tag)
    """Where the completion holds its answer."""
    cpu_seconds: PositiveInt = 5
    """For scoring one answer; one that takes longer gets 0."""
    isolation: IsolationChoice = "best"
    """How far the process is cut off that does so, as for `code_tests`: an answer can be a Python
    expression that a scorer evaluates. The verdicts' `isolated` says whether namespaces are on."""


@final
class ReasoningGym(Verifier):
    """Asks reasoning-gym, in a process of its own: several of its scorers run the answer as Python.

    Source: Stojanovski et al. 2025 (Reasoning Gym), arXiv:2505.24760.
    """

    def __init__(self, settings: ReasoningGymSettings) -> None:
        self._settings = settings
        self.isolation = chosen_isolation(settings.isolation)
        self._scorer = Scorer("reasoning_gym", self.isolation, cpu_seconds=settings.cpu_seconds)

    @override
    def judge(self, rollouts: Sequence[Rollout], texts: Sequence[str]) -> list[Verdict]:
        work = [(r, self._question(r), text) for r, text in paired(rollouts, texts)]
        return [self._judge_one(*one) for one in work]

    def _judge_one(self, rollout: Rollout, question: dict[str, Any], text: str) -> Verdict:
        answer = self._settings.extract.answer_in(text)
        if answer is None:
            kind = self._settings.extract.kind
            return Verdict(
                reward=0.0, parts=self._parts(found=0.0), note=f"no answer found by {kind}"
            )
        (said,) = self._scorer.ask([{**question, "answer": answer}])
        if "trouble" in said:
            note = f"not judged: {said['trouble']}"
            return Verdict(reward=0.0, parts={**self._parts(found=1.0), "trouble": 1.0}, note=note)
        if "tasks" in said["value"]:
            self._refuse_task(rollout, question["dataset"])
        score = float(said["value"]["score"])
        note = "right" if score == 1 else f"answered {answer[:80]!r}"
        return Verdict(reward=score, parts=self._parts(found=1.0), note=note)

    def _parts(self, *, found: float) -> dict[str, float]:
        return {"found": found, "isolated": float(self.isolation.namespaces)}

    def _question(self, rollout: Rollout) -> dict[str, Any]:
        settings = self._settings
        answer = column_of(rollout, settings.answer_column, setting="rewards.answer_column")
        metadata = self._metadata(rollout)
        dataset = settings.dataset or metadata.get("source_dataset")
        if not isinstance(dataset, str):
            raise DataError(
                f"{name_of(rollout)} has no source_dataset in its metadata; it must name the "
                "task. Set rewards.dataset, or keep the metadata that reasoning-gym gave."
            )
        question = rollout.prompt.row.get("question", "")
        return {
            "dataset": dataset,
            "entry": {"question": question, "answer": answer, "metadata": metadata},
        }

    def _metadata(self, rollout: Rollout) -> dict[str, Any]:
        column = self._settings.metadata_column
        found = column_of(rollout, column, setting="rewards.metadata_column")
        try:
            # There and back, so that a row from memory is judged as one from a file.
            found = json.loads(found if isinstance(found, str) else json.dumps(found))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{name_of(rollout)} has metadata that is not JSON ({error}); it must be an object "
                "of plain values. Write the row anew with json.dumps."
            ) from error
        if not isinstance(found, Mapping):
            raise DataError(
                f"{name_of(rollout)} has a {type(found).__name__} in column {column!r}; it must be "
                "an object. Correct rewards.metadata_column, or the row."
            )
        return dict(cast("Mapping[str, Any]", found))

    def _refuse_task(self, rollout: Rollout, dataset: str) -> None:
        allowed = "it must be the name of a task of reasoning-gym"
        if self._settings.dataset is None:
            raise DataError(
                f"{name_of(rollout)} has source_dataset {dataset!r}; {allowed}. Correct the row, "
                "or set rewards.dataset."
            )
        raise ConfigError(f"rewards.dataset is {dataset!r}; {allowed}. Correct the name.")
