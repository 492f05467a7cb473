"""Short names for long things: a tokenizer's words and a chat template, so that a change shows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase, *, num_words: int | None = None) -> str:
    """Of which token has which id.

    Args:
        num_words: only ids below this count, such as those that two models share; None: all.
    """
    words = [
        [index, word]
        for word, index in tokenizer.get_vocab().items()
        if num_words is None or index < num_words
    ]
    return _short(sorted(words))


def template_hash(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    teacher_template: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """Of how conversations become text: the templates in use, and what they are given."""
    own = chat_template or tokenizer.chat_template
    return _short([own, teacher_template, dict(arguments or {})])


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
