# pyright: basic
# A door to safetensors, whose functions are untyped.
"""What goes over the wire of `tutelage serve`: token ids there, numbers back, in safetensors.

A body is tensors and a few words of metadata, so nothing that is read can run. Rows lie end to end
as in a `View`; nothing is ever decoded to text.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, final

import torch
from annotated_types import Gt
from jaxtyping import Int
from pydantic import NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tutelage.core.errors import DataError
from tutelage.core.records import TokenBatch
from tutelage.core.settings import Settings
from tutelage.teachers.cache.identity import HeadShape, StoredDtype
from tutelage.teachers.reading import views_of_rows
from tutelage.teachers.remote.settings import RemoteAnswer

FORMAT = 1
MEDIA_TYPE = "application/vnd.safetensors"
_HEADER_BYTES = 8


@final
class Served(Settings):
    """What a server says of the model it serves."""

    format: int = FORMAT
    code_version: str
    """Of this package, there; for information."""
    model: str
    """As the server was told."""
    revision: str | None = None
    dtype: StoredDtype
    """Of the weights, and so of hidden states."""
    width: PositiveInt
    """Numbers in a hidden state."""
    num_entries: PositiveInt
    """Rows of the head, padding included."""
    num_words: PositiveInt
    """Entries that the tokenizer knows."""
    tokenizer: str
    """A hash over which word has which id."""
    weights: str
    """A hash over some of the numbers in each of the weights."""
    longest: NonNegativeInt
    """Tokens that a row may have; 0 where the model does not say."""
    head: HeadShape
    head_bytes: PositiveInt


@final
class Wanted(Settings):
    """The form of an answer."""

    answer: RemoteAnswer
    num_real: PositiveInt
    """Leading entries of the vocabulary that probabilities are over."""
    num_entries: PositiveInt = 1
    """Likeliest entries, of `top_k`."""
    temperature: Annotated[float, Gt(0)] = 1.0


@final
@dataclass(frozen=True, kw_only=True)
class AskedRow:
    """One row on its way to a server, on the CPU."""

    key: str
    """Its content, for messages; it is not sent."""
    ids: Int[Tensor, " L"]
    predicts: Int[Tensor, " N"]
    """Positions whose outputs are asked for."""


Answer = Mapping[str, Tensor]
"""Of one row: `hidden`, or `logits`, or `ids`, `logp` and `tail_logp`; first axis the N asked."""


def rows_asked(batch: TokenBatch) -> list[AskedRow]:
    """A batch's rows as the teacher reads them."""
    return [
        AskedRow(key=key, ids=view.input_ids.cpu(), predicts=view.predicts.cpu())
        for key, view in zip(batch.keys, views_of_rows(batch.teacher), strict=True)
    ]


def encode_question(rows: Sequence[AskedRow], wanted: Wanted) -> bytes:
    """The body of a request."""
    lengths = torch.tensor([[len(row.ids), len(row.predicts)] for row in rows])
    tensors = {
        "ids": torch.cat([row.ids for row in rows]).int(),
        "predicts": torch.cat([row.predicts for row in rows]).int(),
        "lengths": lengths.int(),
    }
    told = {"format": FORMAT, **wanted.model_dump()}
    return save(tensors, {name: json.dumps(value) for name, value in told.items()})


def decode_question(body: bytes) -> tuple[list[AskedRow], Wanted]:
    """What `encode_question` was given, but for the keys.

    Raises:
        DataError: it is something else.
    """
    tensors, told = decode(body)
    if told.pop("format", None) != FORMAT:
        raise DataError(f"The request's format must be {FORMAT}. Use one version on both sides.")
    try:
        wanted = Wanted(**told)
        ids, predicts = (tensors[name].long() for name in ("ids", "predicts"))
        lengths = tensors["lengths"].long()
        if ids.dim() != 1 or predicts.dim() != 1:
            raise ValueError("ids and predicts must be flat")
        sizes = lengths[:, 0].tolist(), lengths[:, 1].tolist()
        pieces = zip(ids.split(sizes[0]), predicts.split(sizes[1]), strict=True)
        rows = [AskedRow(key="", ids=i, predicts=p) for i, p in pieces]
    except (TypeError, KeyError, ValueError, IndexError, RuntimeError) as error:
        raise DataError(
            f"The request cannot be read ({type(error).__name__}: {error}); it must be ids, "
            "predicts and lengths, and the form of the answer."
        ) from error
    return rows, wanted


def encode_answer(answers: Sequence[Answer], *, asked: str, weights: str) -> bytes:
    """The body of a response: the rows' tensors end to end.

    Args:
        asked: `digest` of the request.
        weights: hash of the weights that answered.
    """
    names = sorted(answers[0])
    tensors = {name: torch.cat([one[name] for one in answers]).contiguous() for name in names}
    return save(tensors, {"asked": json.dumps(asked), "weights": json.dumps(weights)})


def decode(body: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a body.

    Raises:
        DataError: it is no safetensors, or its metadata are not JSON.
    """
    try:
        tensors = load(body)
        size = int.from_bytes(body[:_HEADER_BYTES], "little")
        header = json.loads(body[_HEADER_BYTES : _HEADER_BYTES + size])
        told = {name: json.loads(text) for name, text in header.get("__metadata__", {}).items()}
    except (SafetensorError, ValueError) as error:
        raise DataError(f"The body is no safetensors of ours ({error}).") from error
    return tensors, told


def rows_of(tensors: Mapping[str, Tensor], rows: Sequence[AskedRow]) -> list[Answer]:
    """The answer of each row, cut at the rows' lengths."""
    cuts = [0, *torch.tensor([len(row.predicts) for row in rows]).cumsum(0).tolist()]
    return [
        {name: tensor[start:end] for name, tensor in tensors.items()}
        for start, end in pairwise(cuts)
    ]


def digest(body: bytes) -> str:
    """Of a request, by which its answer is known."""
    return hashlib.blake2b(body, digest_size=16).hexdigest()
