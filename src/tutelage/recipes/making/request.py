"""What is asked of `upcycle`, `prune` and `reroute`, and the rows that models are watched on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final, overload

import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import ConfigError, DataError, OutputError
from tutelage.core.records import TokenBatch
from tutelage.recipes.rows import data_source
from tutelage.recipes.tree import Plain, complaints, overridden
from tutelage.rollouts import read_rows
from tutelage.students import PrunedStudent, ReroutedStudent, UpcycledStudent
from tutelage.text import Formatter, collate, cut

DEFAULT_CALIBRATION = "preset:demo.jsonl"
_MOST_TOKENS = 2048
_OF_TRAINING = ("model", "dtype", "freeze", "lora")
"""Settings of a student in a recipe that mean nothing to a model that is made at once."""


_KINDS = {"upcycled": UpcycledStudent, "pruned": PrunedStudent, "rerouted": ReroutedStudent}


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """The model to begin with, where the new one goes, and what both are watched on."""

    model: str
    """A hub name, a folder, a `.gguf` file, or `package:NAME`."""
    output: Path
    overwrite: bool = False
    """Replace a model that the output folder holds."""
    calibration: str = DEFAULT_CALIBRATION
    """A file or dataset of rows; `preset:FILE` ships with the package."""
    num_rows: int = 32
    """How many of them, from the first."""
    max_row_tokens: int = 256
    """A longer row is cut there."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What weights are kept in; None: what the model was saved in."""
    seed: int = 0


@overload
def student_of(
    kind: Literal["upcycled"], tree: Plain, overrides: Iterable[str]
) -> UpcycledStudent: ...
@overload
def student_of(kind: Literal["pruned"], tree: Plain, overrides: Iterable[str]) -> PrunedStudent: ...
@overload
def student_of(
    kind: Literal["rerouted"], tree: Plain, overrides: Iterable[str], *, model: str
) -> ReroutedStudent: ...
def student_of(
    kind: Literal["upcycled", "pruned", "rerouted"],
    tree: Plain,
    overrides: Iterable[str],
    *,
    model: str | None = None,
) -> UpcycledStudent | PrunedStudent | ReroutedStudent:
    """The settings of a student from a tree of them and what is put over it.

    Args:
        model: what a rerouted student is; the others are made of the source.

    Raises:
        ConfigError: a line for each setting that does not exist or has a wrong value.
    """
    student = _KINDS[kind]
    names = "--from" if model is None else "--student"
    for text in overrides:
        tree = overridden(tree, text)
    for name in _OF_TRAINING:
        if name in tree:
            message = (
                f"{name} is given; it must be left out, for nothing is trained here. Remove it."
                if name != "model"
                else f"model is given; it must be left out, for {names} names it. Remove it."
            )
            raise ConfigError(message)
    try:
        return student.model_validate(tree if model is None else {**tree, "model": model})
    except ValidationError as error:
        raise ConfigError("\n".join(complaints(error, student, tree))) from error


def dtype_of(source: Source) -> torch.dtype | None:
    """What weights are to be kept in; None: what the model was saved in."""
    return None if source.dtype is None else cast(torch.dtype, getattr(torch, source.dtype))


def check_free(source: Source) -> None:
    """Refuse a folder that something else is in, before anything is loaded.

    Raises:
        OutputError: the folder is taken, or cannot be made.
    """
    folder = source.output.expanduser()
    if folder.exists() and not folder.is_dir():
        message = f"--out is {folder}, which is a file; it must be a folder. Choose another name."
        raise OutputError(message)
    if folder.is_dir() and any(folder.iterdir()):
        holds_model = (folder / "config.json").is_file()
        if not holds_model:
            message = (
                f"--out is {folder}, which holds other files; it must be new, empty or a model's. "
                "Choose another folder."
            )
            raise OutputError(message)
        if not source.overwrite:
            message = (
                f"--out is {folder}, which already holds a model; it must be a new folder. "
                "Replace it with --overwrite, or choose another folder."
            )
            raise OutputError(message)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
        # Nothing is left behind where something else is wrong.
        for path in new:
            path.rmdir()
    except OSError as error:
        message = (
            f"--out is {folder}, which cannot be written ({error.strerror}); it must be a folder "
            "you may write to. Choose another."
        )
        raise OutputError(message) from error


def calibration_batches(
    source: Source, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> list[TokenBatch]:
    """The first rows of the calibration data, cut to length.

    A tokenizer without a chat template reads a conversation as plain text, turn after turn.

    Raises:
        DataError: a row or file that cannot be used, or none at all.
    """
    found = read_rows(data_source(source.calibration), num_rows=source.num_rows)
    named = ((row, name) for name, row in found)
    if not tokenizer.chat_template:
        named = ((_plain(row), name) for row, name in named)
    half = source.max_row_tokens // 2
    formatter = Formatter(
        tokenizer, max_prompt_tokens=half, max_completion_tokens=half, too_long="drop"
    )
    rows = formatter.rollouts(named).rows
    if not rows:
        message = (
            f"--calibration is {source.calibration}, which has no usable row; it must have some. "
            "Check the file."
        )
        raise DataError(message)
    return [collate(piece, device=device) for piece in cut(rows, max_tokens=_MOST_TOKENS)]


def _plain(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row if isinstance(row.get("text"), str) else {"text": "\n".join(_texts(row)) or "\n"}


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    for column in ("prompt", "completion", "messages"):
        value = row.get(column)
        if isinstance(value, str):
            yield value
        elif isinstance(value, Sequence):
            turns = cast("Sequence[Any]", value)
            yield from (str(turn["content"]) for turn in turns if isinstance(turn, Mapping))
