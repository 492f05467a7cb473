"""Keeps what routers did over a training, layer by layer, in routers.jsonl."""

from pathlib import Path
from typing import final

from tutelage.core.run_log import RunLog
from tutelage.training import Ended, Event, RouterOwner, Started, StepDone

_MOST_LINES = 100


@final
class RouterScribe:
    """A hook of the trainer: load, advantage and bias of each expert, about a hundred times a run.

    Lines of steps that a resumed run takes again are cut off first, as in the other logs.
    """

    def __init__(self, path: Path, owner: RouterOwner, *, num_steps: int) -> None:
        self._path = path
        self._owner = owner
        self._num_steps = num_steps
        self._every = max(1, -(-num_steps // _MOST_LINES))
        self._log: RunLog | None = None

    def __call__(self, event: Event) -> None:
        """Write what the event brings."""
        match event:
            case Started(step=step):
                self._log = RunLog(self._path, keep_up_to=step or -1)
            case StepDone(record=record) if self._log is not None:
                self._add(record.step)
                # The checkpoint that may follow claims this step.
                self._log.sync()
            case Ended() if self._log is not None:
                self._log.close()
            case _:
                pass

    def _add(self, step: int) -> None:
        due = step % self._every == 0 or step in (1, self._num_steps)
        if due and self._log is not None and self._owner.latest is not None:
            self._log.add(step, self._owner.latest.to_json())
