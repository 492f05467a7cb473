"""A cache as a folder: its manifest, the teacher's head, and rows to train on and to measure on."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tutelage.core.files import file_hash, sync
from tutelage.core.targets import Head
from tutelage.teachers.cache.identity import (
    AnswerSettings,
    HeadShape,
    Identity,
    load_identity,
)
from tutelage.teachers.cache.shard import damaged, write_tensors
from tutelage.teachers.cache.store import Store, StoreWriter

Part = Literal["training", "held_out"]
"""Rows to train on, in the form that was asked for; rows to measure on, always hidden states."""

PARTS: tuple[Part, ...] = ("training", "held_out")
WORDS = "teacher"
"""Folder of the teacher's tokenizer and configuration, inside the cache's."""
_HEAD = "head.safetensors"


def answers_of(identity: Identity, part: Part) -> AnswerSettings:
    """The form of a part's answers. Rows to measure on lose nothing."""
    given = identity.answers
    if part == "training" or given.answer == "hidden":
        return given
    return AnswerSettings(answer="hidden", dtype=identity.held_in)


def save_head(folder: Path, head: Head) -> HeadShape:
    """Write the head's numbers, whole or not at all; answers the rest of it."""
    tensors = {"weight": head.weight.detach().cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach().cpu().contiguous()
    path = folder / _HEAD
    unfinished = path.with_name(f".writing-{path.name}")
    write_tensors(unfinished, tensors)
    unfinished.rename(path)
    sync(folder)
    return HeadShape(scale=head.scale, softcap=head.softcap, sha256=file_hash(path))


def load_head(path: Path, shape: HeadShape, *, device: str | torch.device = "cpu") -> Head:
    """What `save_head` wrote there.

    Raises:
        DataError: the file is missing or damaged, or holds no head.
    """
    if not path.is_file() or file_hash(path) != shape.sha256:
        got = "is damaged" if path.is_file() else "is missing"
        raise damaged(path, f"{got}; it must be as it was written")
    try:
        # Moved afterwards: among several processes the CPU is called cpu:0, which safetensors
        # does not know.
        tensors = {name: one.to(device) for name, one in load_file(path).items()}
        weight = tensors["weight"]
    except (SafetensorError, KeyError) as error:
        raise damaged(path, "holds no head; it must be as it was written") from error
    return Head(
        weight=weight,
        bias=tensors.get("bias"),
        scale=shape.scale,
        softcap=shape.softcap,
    )


@final
class CacheFolder:
    """An existing cache, to read.

    Raises:
        DataError: there is none, or its manifest is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity = load_identity(root)

    def store(self, part: Part) -> Store:
        """The rows of a part.

        Raises:
            DataError: its list or a shard is missing or damaged.
        """
        return Store(self.root / part)

    def head(self, device: str | torch.device = "cpu") -> Head:
        """The teacher's head, over the entries that are real.

        Raises:
            DataError: its file is missing or damaged.
        """
        head = load_head(self.root / _HEAD, self.identity.head, device=device)
        return replace(head, num_real=self.identity.num_real)


def writer_of(root: Path, part: Part, *, tokens_per_shard: int) -> StoreWriter:
    """Appends rows to a part, whose folder is made where there is none."""
    folder = root / part
    folder.mkdir(parents=True, exist_ok=True)
    return StoreWriter(folder, tokens_per_shard=tokens_per_shard)
