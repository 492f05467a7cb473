# pyright: basic
# A door to safetensors, whose slices are untyped.
"""One file of a cache: rows end to end, each with its key and checksum; whole or not there."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.core.errors import DataError
from tutelage.core.files import file_hash, sync

Payload = Mapping[str, Tensor]
"""What is stored of one row: tensors by name, whose first axis may be of any length."""

_KEYS, _STARTS, _SUMS, _NUM_TOKENS = "row.keys", "row.starts", "row.checksums", "row.num_tokens"
_KEY_BYTES = 16


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """One row on its way into a shard."""

    key: str
    """Its content, as in `TokenBatch.keys`."""
    name: str
    """Where it came from, for messages."""
    num_tokens: int
    payload: Payload


@final
@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What the list of shards knows of a file."""

    file: str
    num_rows: int
    num_tokens: int
    num_bytes: int
    sha256: str
    index: int
    """Checksum over the keys, places, sizes and checksums of its rows."""


def write_shard(path: Path, rows: Sequence[Row]) -> ShardEntry:
    """Write the rows aside, sync, then give the file its name."""
    names = sorted(rows[0].payload)
    tensors = {name: torch.cat([row.payload[name] for row in rows]) for name in names}
    lengths = torch.tensor([[len(row.payload[name]) for name in names] for row in rows])
    starts = torch.cat([lengths.new_zeros(1, len(names)), lengths.cumsum(0)])
    keys = np.frombuffer(b"".join(bytes.fromhex(row.key) for row in rows), dtype=np.uint8)
    index = {
        _KEYS: torch.from_numpy(keys.reshape(len(rows), _KEY_BYTES).copy()),
        _STARTS: starts,
        _SUMS: torch.tensor([checksum(row.payload) for row in rows]),
        _NUM_TOKENS: torch.tensor([row.num_tokens for row in rows], dtype=torch.int32),
    }
    tensors |= index
    told = {"names": json.dumps([row.name for row in rows], ensure_ascii=False)}
    unfinished = path.with_name(f".writing-{path.name}")
    write_tensors(unfinished, tensors, told)
    entry = ShardEntry(
        file=path.name,
        num_rows=len(rows),
        num_tokens=sum(row.num_tokens for row in rows),
        num_bytes=unfinished.stat().st_size,
        sha256=file_hash(unfinished),
        index=checksum(index),
    )
    unfinished.rename(path)
    sync(path.parent)
    return entry


@final
class Shard:
    """A file of rows, mapped into memory: only what is asked for is read.

    Raises:
        DataError: the file is missing, has another size than it was written with, or is no shard.
    """

    def __init__(self, path: Path, entry: ShardEntry) -> None:
        self.path = path
        size = path.stat().st_size if path.is_file() else None
        if size != entry.num_bytes:
            got = "missing" if size is None else f"{size} bytes long"
            raise damaged(path, f"is {got}; it must have {entry.num_bytes} bytes")
        try:
            self._file = safe_open(path, framework="pt")
            names = (_KEYS, _STARTS, _SUMS, _NUM_TOKENS)
            index = {name: self._file.get_tensor(name) for name in names}
            self.names: list[str] = json.loads((self._file.metadata() or {})["names"])
            self._tensors = sorted(n for n in self._file.keys() if n not in names)  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise damaged(path, f"cannot be read ({error}); it must be a shard") from error
        if checksum(index) != entry.index:
            raise damaged(path, "has a damaged index: its checksum has changed")
        self._starts = index[_STARTS].tolist()
        self._sums = index[_SUMS].tolist()
        self._num_tokens = index[_NUM_TOKENS].tolist()
        self._raw_keys = index[_KEYS].numpy()

    @property
    def keys(self) -> np.ndarray:
        """[rows, 2] of big-endian halves of the rows' keys, as numbers."""
        return self._raw_keys.reshape(-1).view(">u8").astype(np.uint64).reshape(-1, 2)

    def key(self, row: int) -> str:
        """A row's key as `TokenBatch.keys` has it."""
        return self._raw_keys[row].tobytes().hex()

    def num_tokens(self, row: int) -> int:
        """Trained tokens of a row."""
        return self._num_tokens[row]

    def read(self, row: int) -> dict[str, Tensor]:
        """One row's tensors, proved to be what was written.

        Raises:
            DataError: their checksum has changed; names the file and the row.
        """
        try:
            found = {
                name: self._file.get_slice(name)[start:stop]
                for name, start, stop in zip(
                    self._tensors, self._starts[row], self._starts[row + 1], strict=True
                )
            }
            whole = checksum(found) == self._sums[row]
        except (SafetensorError, IndexError, ValueError):
            whole, found = False, {}
        if not whole:
            what = f"is damaged in row {row} ({self.names[row]}, key {self.key(row)})"
            raise damaged(self.path, f"{what}: its checksum has changed")
        return found


def checksum(payload: Payload) -> int:
    """Over the bytes of all tensors, in the order of their names."""
    total = 0
    for name in sorted(payload):
        raw = payload[name].contiguous().flatten().view(torch.uint8).numpy()
        total = zlib.crc32(raw.tobytes(), total)
    return total


def write_tensors(path: Path, tensors: Payload, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file on the disk, to be read by whoever may read the folder."""
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    path.chmod(0o644)
    sync(path)


def damaged(path: Path, what: str) -> DataError:
    """The complaint about a file of a cache."""
    return DataError(
        f"{path} {what}. Run `tutelage cache` again with the same folder: it finds what is "
        "damaged and writes that anew."
    )
