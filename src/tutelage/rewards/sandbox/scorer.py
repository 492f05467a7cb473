"""A library that scores answers, in a process of its own that hostile answers may ruin."""

import importlib.util
import json
import select
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, final

from tutelage.core.errors import MissingDependencyError
from tutelage.rewards.sandbox.cell import Cell, Isolation, Limits, open_cell

Library = Literal["math_verify", "reasoning_gym"]

_SERVER = Path(__file__).with_name("scorer_server.py")
_PACKAGES: Mapping[Library, str] = {
    "math_verify": "math-verify",
    "reasoning_gym": "reasoning-gym",
}
_START_SECONDS = 600.0
"""How long the library may take to be imported, on a busy machine."""
_GRACE_SECONDS = 30.0


@final
class Scorer:
    """Asks a library about answers; the process behind it starts at the first question.

    An answer that runs out of time or memory, or ends the process, has got no score; the next one
    finds a new process.

    Args:
        library: which one.
        isolation: how far its process is cut off.
        cpu_seconds: processor time for one answer.
        memory_megabytes: address space, the library's own included.

    Raises:
        MissingDependencyError: the library is not installed.
    """

    def __init__(
        self,
        library: Library,
        isolation: Isolation,
        *,
        cpu_seconds: int,
        memory_megabytes: int = 2048,
    ) -> None:
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(
                f"The package {_PACKAGES[library]} is missing; it must be installed for this "
                "kind of reward. Run pip install 'tutelage[rewards]'."
            )
        self._library: Library = library
        self._isolation = isolation
        self._times = {"cpu_seconds": cpu_seconds, "wall_seconds": 10.0 * cpu_seconds}
        # The library reads files and reckons; the limits on time are those of each answer.
        self._limits = Limits(
            cpu_seconds=None, wall_seconds=None, memory_megabytes=memory_megabytes
        )
        self._stack = ExitStack()
        self._cell: Cell | None = None
        self._closing = weakref.finalize(self, self._stack.close)

    def ask(self, questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """For each question, {value: what the library says} or {trouble: why it says nothing}.

        Raises:
            MissingDependencyError: the library cannot be imported where it is to run.
        """
        return [self._ask_one(question) for question in questions]

    def _ask_one(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if self._cell is None:
            self._start()
        try:
            answer = self._exchange({**question, **self._times}, self._times["wall_seconds"])
        except BaseException:
            # Interrupted between question and answer: the next one must not read this one's.
            self._stop()
            raise
        if answer is None:
            self._stop()
            return {"trouble": "it ended the process that judged it"}
        return answer

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._cell = self._stack.enter_context(
            open_cell(
                _SERVER.read_bytes(),
                self._limits,
                self._isolation,
                streams=(pipe, pipe, subprocess.DEVNULL),
                libraries=True,
            )
        )
        ready = self._exchange({"scorer": self._library}, _START_SECONDS)
        if ready is None or "value" not in ready:
            trouble = (ready or {}).get("trouble", "its process ended")
            self._stop()
            raise MissingDependencyError(
                f"The package {_PACKAGES[self._library]} cannot be imported ({trouble}); it must "
                "be importable in a process of its own. Run pip install 'tutelage[rewards]'."
            )

    def _stop(self) -> None:
        self._stack.close()
        self._cell = None

    def _exchange(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """One line there and one line back; None if the other side is gone."""
        process = self._cell.process if self._cell else None
        if process is None or process.stdin is None or process.stdout is None:
            return None
        to, back = process.stdin, process.stdout
        try:
            to.write(json.dumps(question).encode() + b"\n")
            to.flush()
        except BrokenPipeError:
            return None
        ready, _, _ = select.select([back], [], [], seconds + _GRACE_SECONDS)
        line = back.readline() if ready else b""
        return json.loads(line) if line.endswith(b"\n") else None
