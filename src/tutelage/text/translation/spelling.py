# pyright: basic
# A door to `tokenizers`, whose types are partial.
"""How a tokenizer spells bytes: what each of its tokens says, and what it says for given bytes."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import ModelError

_SPACE = "\u2581"
_WORD = re.compile(r"\s*\S+|\s+")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@final
class Spelling:
    """A tokenizer as pairs of token and bytes.

    Byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece ones (Gemma, Llama 2,
    Mistral) are understood. Others, such as WordPiece, say too little about white space.

    Raises:
        ModelError: of another kind, or without a `tokenizers` backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                f"The tokenizer is a {type(tokenizer).__name__} without a `tokenizers` backend; it "
                "must be a fast one to be aligned with another. Convert it to a tokenizer.json."
            )
        state = json.loads(backend.to_str())
        self.pieces = _pieces(tokenizer, state)
        """What each token says, by id; None for special tokens and ids that nothing has."""
        self.special = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        """Special tokens by name."""
        self.ids_of = _ids_of(self.pieces, tokenizer)
        """The one token that says these bytes; where several do, not the byte's own escape."""
        self._backend = _continuing(state)

    @property
    def num_entries(self) -> int:
        """Ids from 0 to the last that means something."""
        return len(self.pieces)

    def says(self, ids: Iterable[int]) -> bytes:
        """What tokens say together; special ones say nothing."""
        return b"".join(self._piece(one) or b"" for one in ids)

    def sizes(self, ids: Iterable[int]) -> list[int]:
        """Bytes that each token says."""
        return [len(self._piece(one) or b"") for one in ids]

    def is_special(self, token: int) -> bool:
        """Whether it says nothing."""
        return self._piece(token) is None

    def encode(self, text: bytes) -> list[int] | None:
        """The tokens that say exactly these bytes in the middle of a text.

        A special token's name is text like any other. What is no UTF-8, and words that the
        tokenizer would change (by normalising them, say), are spelled byte by byte. None where
        it has no tokens for single bytes to do that with.
        """
        ids: list[int] = []
        for piece, valid in _runs(text):
            said = self._by_words(piece) if valid else self._byte_by_byte(piece)
            if said is None:
                return None
            ids += said
        return ids

    def _by_words(self, text: bytes) -> list[int] | None:
        """Whole where that goes, else word by word, and only the others byte by byte."""
        said = self._whole(text)
        if said is not None:
            return said
        words = [match.encode() for match in _WORD.findall(text.decode())]
        each = [self._whole(word) or self._byte_by_byte(word) for word in words]
        known = [one for one in each if one is not None]
        return [token for one in known for token in one] if len(known) == len(each) else None

    def _whole(self, text: bytes) -> list[int] | None:
        """By the tokenizer itself; None where that would say something else."""
        ids = self._backend.encode(text.decode(), add_special_tokens=False).ids
        return ids if self.says(ids) == text and all(self.sizes(ids)) else None

    def _byte_by_byte(self, text: bytes) -> list[int] | None:
        singles = [self.ids_of.get(text[at : at + 1]) for at in range(len(text))]
        known = [one for one in singles if one is not None]
        return known if len(known) == len(singles) else None

    def _piece(self, token: int) -> bytes | None:
        return self.pieces[token] if token < len(self.pieces) else None


def _runs(text: bytes) -> Iterable[tuple[bytes, bool]]:
    """The text cut where it stops or starts being UTF-8, and whether each piece is."""
    while text:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            if error.start:
                yield text[: error.start], True
            yield text[error.start : error.end], False
            text = text[error.end :]
        else:
            yield text, True
            return


def _pieces(
    tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any]
) -> tuple[bytes | None, ...]:
    kinds = set(_kinds(state["decoder"]))
    byte_level = "ByteLevel" in kinds
    if not byte_level and not kinds & {"Metaspace", "ByteFallback", "Replace"}:
        raise ModelError(
            f"The tokenizer's decoder is {'/'.join(sorted(kinds)) or 'missing'}; it must be "
            "byte-level or SentencePiece to be aligned with another, for it must say which bytes "
            "a token stands for. Choose a model with such a tokenizer."
        )
    added = tokenizer.added_tokens_decoder
    found: dict[int, bytes | None] = {}
    for word, index in tokenizer.get_vocab().items():
        if index in added:
            found[index] = None if added[index].special else added[index].content.encode()
        elif byte_level:
            found[index] = _of_letters(word)
        else:
            found[index] = _of_sentence_piece(word)
    unknown = state["model"].get("unk_token")
    unknown = tokenizer.get_vocab().get(unknown) if unknown else state["model"].get("unk_id")
    if unknown is not None:
        found[unknown] = None
    return tuple(found.get(index) for index in range(max(found, default=-1) + 1))


def _kinds(part: Any) -> Iterable[str]:  # noqa: ANN401 - whatever the JSON holds
    """Types of a component of a tokenizer.json and of all inside it."""
    if isinstance(part, dict):
        if "type" in part:
            yield part["type"]
        for inside in part.values():
            yield from _kinds(inside)
    elif isinstance(part, list):
        for inside in part:
            yield from _kinds(inside)


def _letters() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it can be printed, else one from 256 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + at): b for at, b in enumerate(hidden)}


_LETTERS = _letters()


def _of_letters(word: str) -> bytes | None:
    bytes_of = [_LETTERS.get(letter) for letter in word]
    known = [byte for byte in bytes_of if byte is not None]
    return bytes(known) if len(known) == len(bytes_of) else None


def _of_sentence_piece(word: str) -> bytes:
    escaped = _BYTE.fullmatch(word)
    return bytes([int(escaped[1], 16)]) if escaped else word.replace(_SPACE, " ").encode()


def _ids_of(
    pieces: Sequence[bytes | None], tokenizer: PreTrainedTokenizerBase
) -> Mapping[bytes, int]:
    words = tokenizer.convert_ids_to_tokens(list(range(len(pieces))))
    plain: dict[bytes, int] = {}
    escapes: dict[bytes, int] = {}
    for index, (piece, word) in enumerate(zip(pieces, words, strict=True)):
        if piece:
            # SentencePiece may have a letter and the escape of its byte.
            escaped = _BYTE.fullmatch(str(word)) is not None and len(piece) == 1
            (escapes if escaped else plain).setdefault(piece, index)
    return escapes | plain


def _continuing(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer as it goes on in the middle of a text: nothing is put in front of it."""
    changed = {
        **state,
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "normalizer": _unprefixed(state["normalizer"]),
        "pre_tokenizer": _unprefixed(state["pre_tokenizer"]),
    }
    backend = Tokenizer.from_str(json.dumps(changed))
    backend.encode_special_tokens = True
    return backend


def _unprefixed(part: Any) -> Any:  # noqa: ANN401 - whatever the JSON holds
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    if part.get("type") == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part.get("type") == "ByteLevel":
        return {**part, "add_prefix_space": False}
    for name in ("normalizers", "pretokenizers"):
        if name in part:
            kept = [_unprefixed(one) for one in part[name]]
            return {**part, name: [one for one in kept if one is not None]}
    return part
