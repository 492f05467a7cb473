# pyright: basic
# The door to `datasets` and `pyarrow`, whose types are partial.
"""Rows of data from wherever they lie, each with a name that says where it came from."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.core.errors import DataError

Row = Mapping[str, Any]
NamedRow = tuple[str, Row]


def read_rows(
    source: str | Path | Iterable[Row],
    *,
    split: str = "train",
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    num_rows: int | None = None,
) -> Iterator[NamedRow]:
    """Rows one by one, each with its name: `file:line`, `dataset[split]:row` or `row 3`.

    Args:
        source: a `.jsonl`, `.json`, `.csv` or `.parquet` file; a folder written by
            `datasets.save_to_disk`; the name of a dataset on the hub; or the rows themselves.
        split: which split of a hub dataset or folder with several.
        subset: which configuration of a hub dataset.
        columns: our name of a column to the data's name for it. Other columns stay as they are.
        num_rows: only that many, from the first.

    Raises:
        DataError: the source cannot be read, a line is not a row, or a column is missing.
    """
    if isinstance(source, str | Path):
        rows = _from_file(Path(source)) or _from_datasets(str(source), split, subset)
    else:
        rows = ((f"row {number}", row) for number, row in enumerate(source, 1))
    for name, row in islice(rows, num_rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name} is a {type(row).__name__}; it must be an object with columns. "
                'Write it as {"prompt": ..., "completion": ...}.'
            )
        yield name, _renamed(row, columns or {}, name)


def _renamed(row: Row, columns: Mapping[str, str], name: str) -> Row:
    for theirs in columns.values():
        if theirs not in row:
            raise DataError(
                f"{name} has no column {theirs!r}; it must be one of {', '.join(sorted(row))}. "
                "Correct rollouts.columns, or the row."
            )
    taken = set(columns.values()) | set(columns)
    others = {key: value for key, value in row.items() if key not in taken}
    return {**others, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _from_file(path: Path) -> Iterator[NamedRow] | None:
    """The rows of a file that we read ourselves; None for a name that is no such file."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        if path.is_file():
            raise DataError(
                f"Data file {path} ends in {path.suffix or 'nothing'}; it must be one of "
                f"{', '.join(READERS)}. Convert it, or rename it."
            )
        return None
    if not path.is_file():
        raise DataError(
            f"Data file {path} is missing; it must be a file that exists. "
            f"Correct the path (the working folder is {Path.cwd()})."
        )
    return reader(path)


def _jsonl(path: Path) -> Iterator[NamedRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _json(path: Path) -> Iterator[NamedRow]:
    rows = _parsed(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds a {type(rows).__name__}; it must be a list of rows. "
            "Use a .jsonl file for one object a line."
        )
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _parsed(text: bytes, name: str) -> Any:  # noqa: ANN401 - whatever the JSON holds
    try:
        return json.loads(text.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"{name} is not JSON in UTF-8 ({error}); it must be one JSON object. "
            "Correct the line, or write the file anew with json.dumps."
        ) from error


def _csv(path: Path) -> Iterator[NamedRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", restval=None)
        for row in reader:
            name = f"{path}:{reader.line_num}"
            if "" in row or None in row.values():
                raise DataError(
                    f"{name} has another number of fields than the header; it must be "
                    f"{len(reader.fieldnames or ())}. Quote fields that hold commas."
                )
            yield name, row


def _parquet(path: Path) -> Iterator[NamedRow]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is not a parquet file ({error}); it must be one. Write it anew."
        ) from error


READERS: dict[str, Callable[[Path], Iterator[NamedRow]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _from_datasets(source: str, split: str, subset: str | None) -> Iterator[NamedRow]:
    try:
        found = (
            datasets.load_from_disk(source)
            if Path(source).is_dir()
            else datasets.load_dataset(source, subset, split=split)
        )
    except (ValueError, OSError) as error:
        raise DataError(
            f"Data {source} cannot be read ({_first_line(error)}); it must be a "
            f"{', '.join(READERS)} file, a folder of datasets.save_to_disk or a dataset on the "
            "hub. Correct the name, split or subset, or check the connection."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(
                f"rollouts.split is {split}; it must be one of {', '.join(map(str, found))}. "
                "Correct it."
            )
        found = found[split]
    return ((f"{source}[{split}]:{number}", dict(row)) for number, row in enumerate(found))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
