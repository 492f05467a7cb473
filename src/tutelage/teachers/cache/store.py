"""Rows in shards: appended one by one, found by their content, in any order and by any reader."""

import fcntl
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from tutelage.core.errors import DataError, OutputError
from tutelage.core.files import file_hash
from tutelage.core.run_log import write_json
from tutelage.teachers.cache.shard import Row, Shard, ShardEntry, damaged, write_shard

LIST = "shards.json"
_MOST_OPEN = 64
_NAME = "shard-{:05d}.safetensors"


@final
class Store:
    """The finished shards of one folder. Any number of processes may read it at a time.

    Only the keys are held in memory: sixteen bytes a row, and eight for where it is.

    Raises:
        DataError: the list of shards, or a shard, is missing or damaged; names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = read_list(folder)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()
        parts = [self._shard(at).keys for at in range(len(self.entries))]
        keys = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.uint64)
        shards = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        rows = np.concatenate([np.arange(len(part)) for part in parts]) if parts else shards
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._keys, self._places = keys[order], np.stack([shards, rows], axis=1)[order]

    @property
    def num_rows(self) -> int:
        """Rows in all shards."""
        return sum(entry.num_rows for entry in self.entries)

    @property
    def num_tokens(self) -> int:
        """Trained tokens in all shards."""
        return sum(entry.num_tokens for entry in self.entries)

    @property
    def num_bytes(self) -> int:
        """Of all shards, keys and checksums included."""
        return sum(entry.num_bytes for entry in self.entries)

    def __contains__(self, key: str) -> bool:
        return self._place(key) is not None

    def read(self, key: str) -> tuple[dict[str, Tensor], int]:
        """A row's tensors and its number of trained tokens.

        Raises:
            DataError: there is no such row, or it is damaged; says which.
        """
        place = self._place(key)
        if place is None:
            raise DataError(
                f"The row with key {key} is not in the cache {self.folder}; every row that is "
                "trained or measured on must be. Run `tutelage cache` with this recipe and the "
                "same folder to add it."
            )
        shard = self._shard(place[0])
        return shard.read(place[1]), shard.num_tokens(place[1])

    def names(self) -> Iterator[tuple[str, str]]:
        """Key and name of every row."""
        for at in range(len(self.entries)):
            shard = self._shard(at)
            yield from ((shard.key(row), name) for row, name in enumerate(shard.names))

    def verify(self) -> Iterator[tuple[ShardEntry, str | None]]:
        """Read every byte of every shard; answers each with what is wrong with it, if anything."""
        for entry in self.entries:
            yield entry, complaint(self.folder, entry)

    def _place(self, key: str) -> tuple[int, int] | None:
        high, low = int(key[:16], 16), int(key[16:], 16)
        at = int(np.searchsorted(self._keys[:, 0], np.uint64(high)))
        while at < len(self._keys) and int(self._keys[at, 0]) == high:
            if int(self._keys[at, 1]) == low:
                return int(self._places[at, 0]), int(self._places[at, 1])
            at += 1
        return None

    def _shard(self, at: int) -> Shard:
        with self._lock:
            shard = self._open.pop(at, None)
            if shard is None:
                entry = self.entries[at]
                shard = Shard(self.folder / entry.file, entry)
            # The one that was used last is closed last.
            self._open[at] = shard
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return shard


@final
class StoreWriter:
    """Appends rows to a folder; goes on where a killed one stopped.

    Rows are cut into shards by their tokens, so the same rows end in the same files however often
    the work was interrupted. Made by `writing`, which lets one writer in at a time.

    Args:
        tokens_per_shard: a shard is closed with the row that reaches this many trained tokens.
    """

    def __init__(self, folder: Path, *, tokens_per_shard: int) -> None:
        self._folder = folder
        self._tokens_per_shard = tokens_per_shard
        self._pending: list[Row] = []
        self._pending_tokens = 0
        self.repaired: list[str] = []
        """What was found damaged and is to be written anew, in sentences."""
        self._entries = self._whole_shards()
        self._known = {key for key, _ in Store(folder).names()} if self._entries else set[str]()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    @property
    def num_rows(self) -> int:
        """Rows written so far, the open shard's included."""
        return len(self._known)

    def append(self, row: Row) -> None:
        """Add a row that is not there yet; it is safe once its shard is closed.

        Raises:
            OutputError: the disk is full or gone; finished shards are as they were.
        """
        if row.key in self._known:
            return
        self._known.add(row.key)
        self._pending.append(row)
        self._pending_tokens += row.num_tokens
        if self._pending_tokens >= self._tokens_per_shard:
            self.close_shard()

    def close_shard(self) -> None:
        """Write what is pending.

        Raises:
            OutputError: the disk is full or gone; finished shards are as they were.
        """
        if not self._pending:
            return
        taken = {entry.file for entry in self._entries}
        file = next(_NAME.format(n) for n in range(len(taken) + 1) if _NAME.format(n) not in taken)
        try:
            self._entries.append(write_shard(self._folder / file, self._pending))
        except OSError as error:
            raise _cannot_write(self._folder, error) from error
        self._pending, self._pending_tokens = [], 0
        self._publish()

    def _publish(self) -> None:
        self._entries.sort(key=lambda entry: entry.file)
        write_json(self._folder / LIST, {"shards": [asdict(entry) for entry in self._entries]})

    def _whole_shards(self) -> list[ShardEntry]:
        """The shards that are what they were when written; all other files of ours go."""
        listed = read_list(self._folder) if (self._folder / LIST).is_file() else []
        found = [(entry, complaint(self._folder, entry)) for entry in listed]
        whole = [entry for entry, wrong in found if wrong is None]
        self.repaired += [f"{self._folder / e.file} {wrong}" for e, wrong in found if wrong]
        kept = {entry.file for entry in whole}
        for path in self._folder.glob("*shard-*.safetensors"):
            if path.name not in kept:
                if path.name not in {entry.file for entry in listed}:
                    self.repaired.append(f"{path} was left half done")
                path.unlink()
        self._entries = whole
        self._publish()
        return whole


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other writers out of a folder for as long as the context, or this process, lasts.

    Raises:
        OutputError: somebody is writing there, or nobody can.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"{folder} is being written by another process; it must be one at a time. "
                    "Wait for it to end, or choose another folder."
                ) from error
            yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise _cannot_write(folder, error) from error


def read_list(folder: Path) -> list[ShardEntry]:
    """The finished shards of a folder.

    Raises:
        DataError: the list is missing or damaged.
    """
    path = folder / LIST
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        return [_entry(one) for one in tree["shards"]]
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; a cache must have a list of its shards. Run `tutelage cache` "
            "with the same folder to finish it."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); it must be as it was written. Restore it, or delete "
            "the folder and make the cache again."
        ) from error


def complaint(folder: Path, entry: ShardEntry) -> str | None:
    """What is wrong with a shard's file; None where every byte is as it was written."""
    path = folder / entry.file
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry.num_bytes:
        return f"has {size} bytes where {entry.num_bytes} were written"
    return None if file_hash(path) == entry.sha256 else "is damaged: its checksum has changed"


def check_whole(stores: Iterable[Store]) -> None:
    """Read every byte.

    Raises:
        DataError: a shard is damaged; names it.
    """
    for store in stores:
        for entry, wrong in store.verify():
            if wrong is not None:
                raise damaged(store.folder / entry.file, wrong)


def _entry(tree: Mapping[str, Any]) -> ShardEntry:
    entry = ShardEntry(**tree)
    if not re.fullmatch(r"shard-\d+\.safetensors", entry.file):
        raise ValueError(f"{entry.file!r} is no shard")
    return entry


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder} is not writable ({error.strerror or error}); a cache needs a disk with room. "
        "Finished shards are untouched: make room and run the same command again."
    )
