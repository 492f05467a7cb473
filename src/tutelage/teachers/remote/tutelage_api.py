"""The language of `tutelage serve`."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from pydantic import ValidationError
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.files import file_hash, sync
from tutelage.core.targets import Head
from tutelage.models import cache_folder
from tutelage.teachers.cache.folder import load_head
from tutelage.teachers.cache.packing import unpack_ids
from tutelage.teachers.remote.api import ServerApi, lie
from tutelage.teachers.remote.link import Link
from tutelage.teachers.remote.wire import (
    FORMAT,
    MEDIA_TYPE,
    Answer,
    AskedRow,
    Served,
    Wanted,
    decode,
    digest,
    encode_question,
    rows_of,
)


@final
@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known here of the model that should be served."""

    name: str
    tokenizer: str
    """Hash over which word has which id."""
    num_entries: int
    width: int


@final
class TutelageApi(ServerApi):
    """Speaks with `tutelage serve`, and holds it to the model that it was when first met."""

    def __init__(self, link: Link, expected: Expected) -> None:
        self._link = link
        self._expected = expected
        self._served: Served | None = None

    @property
    def served(self) -> Served:
        """What the server said of its model."""
        if self._served is None:
            self.greet()
        assert self._served is not None  # noqa: S101  greet has set it, or raised
        return self._served

    @override
    def greet(self) -> Mapping[str, Any]:
        url, found = self._link.url, self._link.get("/identity")
        try:
            tree = found.json()
            version = tree.get("format") if isinstance(tree, dict) else None
            if version != FORMAT:
                raise lie(url, None, f"in format {version}; it must be {FORMAT}, of this version")
            served = Served.model_validate(tree)
        except (ValueError, ValidationError) as error:
            reason = self._link.clean(str(error))
            raise lie(
                url, None, f"/identity in no known way ({reason}); it must be ours"
            ) from error
        self._refuse_other(served)
        self._served = served
        # Neither the code's version nor where the weights lie says what they answer.
        return served.model_dump(mode="json", include={"weights", "dtype", "tokenizer"})

    def _refuse_other(self, served: Served) -> None:
        expected, before = self._expected, self._served
        for what, got, must in (
            ("model", served.model, expected.name),
            ("tokenizer hash", served.tokenizer, expected.tokenizer),
            ("vocabulary size", served.num_entries, expected.num_entries),
            ("width", served.width, expected.width),
            ("weights hash", served.weights, served.weights if before is None else before.weights),
            ("dtype", served.dtype, served.dtype if before is None else before.dtype),
        ):
            if got != must:
                fault = f"for another model: its {what} is {got}; it must be {must}"
                if what == "model":
                    fault += " (or name it in teacher.served_name)"
                raise lie(self._link.url, None, fault)

    @override
    def head(self, device: str | torch.device) -> Head:
        shape = self.served.head
        path = cache_folder() / "heads" / f"{shape.sha256}.safetensors"
        if not path.is_file() or file_hash(path) != shape.sha256:
            content = self._link.get("/head").content
            found = hashlib.sha256(content).hexdigest()
            if found != shape.sha256:
                fault = f"with a head of SHA-256 {found}; it must be {shape.sha256}"
                raise lie(self._link.url, None, fault)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{path.name}-{os.getpid()}")
            unfinished.write_bytes(content)
            sync(unfinished)
            unfinished.rename(path)
        try:
            return load_head(path, shape, device=device)
        except DataError as error:
            # Its bytes are the server's own; what is said of a cache's file is no help here.
            fault = "with a head that cannot be read; it must be safetensors that hold a weight"
            raise lie(self._link.url, None, fault) from error

    @override
    def ask(self, rows: Sequence[AskedRow], wanted: Wanted) -> list[Answer]:
        question = encode_question(rows, wanted)
        response = self._link.post("/score", content=question, headers={"Content-Type": MEDIA_TYPE})
        url = self._link.url
        try:
            tensors, told = decode(response.content)
        except DataError as error:
            raise lie(url, rows[0], f"what cannot be read: {error}") from error
        if told.get("weights") != self.served.weights:
            fault = f"with weights {told.get('weights')}; they must be {self.served.weights}"
            raise lie(url, rows[0], fault)
        if told.get("asked") != digest(question):
            raise lie(url, rows[0], "another question; it must answer the one that was asked")
        if wanted.answer == "top_k":
            tensors = _unpacked(tensors)
        num_tokens = sum(len(row.predicts) for row in rows)
        for name, tensor in tensors.items():
            if len(tensor) != num_tokens:
                fault = f"with {len(tensor)} rows of {name}; it must be {num_tokens}"
                raise lie(url, rows[0], fault)
        return rows_of(tensors, rows)


def _unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    low, high = tensors.get("ids"), tensors.get("ids_high")
    if low is None or low.dim() != 2:  # noqa: PLR2004  tokens and entries
        return tensors
    kept = {name: tensor for name, tensor in tensors.items() if name != "ids_high"}
    return {**kept, "ids": unpack_ids(low, high)}
