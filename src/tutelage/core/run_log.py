"""The folder a run leaves behind: where each file lies, and how its lines are written and read.

`metrics.jsonl` holds one object a line with `step`, `phase` ("train" or "eval"), `seconds` since
the run began, and numbers. A line is on its way to the disk before the next step begins, so a
killed run loses at most the line it was writing.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, final

from tutelage.core.errors import DataError, OutputError

Phase = Literal["train", "eval"]

TIME_FIELDS = frozenset({"seconds", "tokens_per_second", "generated_tokens_per_second"})
"""The only fields in which a resumed run's log differs from that of the unbroken one."""


@final
@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run lies. Naming a path creates nothing."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved settings."""
        return self.root / "recipe.yaml"

    @property
    def versions(self) -> Path:
        """Packages, Python, machine and commit."""
        return self.root / "versions.json"

    @property
    def metrics(self) -> Path:
        """One line for each step and each evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """A few of each step's rollouts, where models write them."""
        return self.root / "rollouts.jsonl"

    @property
    def routers(self) -> Path:
        """Load, bias and advantage of each expert over the training, where there are experts."""
        return self.root / "routers.jsonl"

    @property
    def samples(self) -> Path:
        """Completions before, after and of the teacher."""
        return self.root / "samples.jsonl"

    @property
    def tokens(self) -> Path:
        """Held-out rows seen token by token."""
        return self.root / "tokens.jsonl"

    @property
    def positions(self) -> Path:
        """Divergence by position in the completion."""
        return self.root / "positions.json"

    @property
    def summary(self) -> Path:
        """The table of the run."""
        return self.root / "summary.json"

    @property
    def answers(self) -> Path:
        """Caches of teachers that were loaded one at a time before the first step."""
        return self.root / "answers"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, named `step-N`."""
        return self.root / "checkpoints"

    @property
    def student(self) -> Path:
        """The trained model, as `save_pretrained` lays it out."""
        return self.root / "student"

    @property
    def plots(self) -> Path:
        """Pictures."""
        return self.root / "plots"

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.root / "report.html"

    def baseline(self, name: str) -> "RunFolder":
        """The folder of a baseline run, laid out like this one."""
        return RunFolder(self.root / "baselines" / name)

    def create(self) -> None:
        """Make the folder and prove that it can be written to.

        Raises:
            OutputError: it cannot.
        """
        probe = self.root / ".writable"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise _cannot_write(self.root, error) from error


@final
class RunLog:
    """Appends to `metrics.jsonl`, or to another file of lines with a `step`.

    A line is handed to the operating system before the call returns.

    Args:
        keep_up_to: lines of later steps are cut off, and so is a line that was never finished:
            what a run that died wrote after the checkpoint it is resumed from. -1 keeps nothing.
    """

    def __init__(self, path: Path, *, keep_up_to: int = -1) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_up_to(path, keep_up_to) if keep_up_to >= 0 else ""
            _replace(path, kept)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(path, error) from error

    def write(self, *, step: int, phase: Phase, seconds: float, numbers: Mapping[str, Any]) -> None:
        """Add a line. A number that is not finite is written as null, for JSON has no word for it.

        Raises:
            OutputError: the disk is full or gone.
        """
        self.add(step, {"phase": phase, "seconds": seconds, **numbers})

    def add(self, step: int, line: Mapping[str, Any]) -> None:
        """Add a line of any form.

        Raises:
            OutputError: the disk is full or gone.
        """
        try:
            self._file.write(_to_json({"step": step, **line}) + "\n")
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def sync(self) -> None:
        """Wait until the disk holds every line: called before a checkpoint claims its step."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path, *, phase: Phase | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file in order; an unfinished last line is left out.

    Raises:
        DataError: the file is missing, or a line in the middle is not JSON.
    """
    lines = read_jsonl(path)
    return [line for line in lines if phase is None or line["phase"] == phase]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of a file with one JSON object a line; an unfinished last line is left out.

    Raises:
        DataError: the file is missing, or a line in the middle is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = (
            f"{path} is not readable ({error.strerror}); it must be a file of JSON lines. "
            "Check the folder of the run."
        )
        raise DataError(message) from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            message = (
                f"{path} line {number} is not JSON ({error.msg}); every line must be one object. "
                "Remove the line."
            )
            raise DataError(message) from error
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, one JSON object a line, in place of what was there: all of them or none.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, "".join(_to_json(row) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows behind those that are there.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(_to_json(row) + "\n" for row in rows)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object in place of what was there: all of it or nothing.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, _to_json(value, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _replace(path: Path, text: str) -> None:
    # A reader, or a kill, must never find half a file under the real name.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _lines_up_to(path: Path, step: int) -> str:
    if not path.exists():
        return ""
    return "".join(_to_json(row) + "\n" for row in read_jsonl(path) if row["step"] <= step)


def _to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} is not writable ({error.strerror or error}); it must be a place where this user "
        "may create files, on a disk with room. Choose another output folder."
    )
