"""Keeps a few rollouts of each step, as text for people to read, in rollouts.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Rollout
from tutelage.core.run_log import RunLog
from tutelage.evaluation import shown_prompt
from tutelage.training import Collected, Ended, Event, Started, StepDone

_PER_STEP = 2


@final
class RolloutScribe:
    """A hook of the trainer: the first rows of each step that a model wrote, and all empty ones.

    Lines of steps that a resumed run takes again are cut off first, as in the other logs.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self._log: RunLog | None = None

    def __call__(self, event: Event) -> None:
        """Write what the event brings."""
        match event:
            case Started(step=step):
                self._log = RunLog(self._path, keep_up_to=step or -1)
            case Collected(step=step, rollouts=rollouts):
                self._add(step, [row for row in rollouts if row.source != "dataset"])
            case StepDone() if self._log is not None:
                # The checkpoint that may follow claims this step.
                self._log.sync()
            case Ended() if self._log is not None:
                self._log.close()
            case _:
                pass

    def _add(self, step: int, written: Sequence[Rollout]) -> None:
        chosen = [row for at, row in enumerate(written) if at < _PER_STEP or row.is_empty]
        if self._log is not None:
            for row in chosen:
                self._log.add(step, self._line(row))

    def _line(self, row: Rollout) -> dict[str, Any]:
        logp = row.sampled_logp or ()
        return {
            "row": row.prompt.name,
            "source": row.source,
            "prompt": shown_prompt(row.prompt, self._tokenizer),
            # With its special tokens: whether and how it ends is what one looks for here.
            "completion": str(self._tokenizer.decode(list(row.completion_ids))),
            "num_tokens": len(row.completion_ids),
            "truncated": row.truncated,
            "empty": row.is_empty,
            "trained": row.trained is None or any(row.trained),
            "mean_logp": sum(logp) / max(len(logp), 1),
        }
