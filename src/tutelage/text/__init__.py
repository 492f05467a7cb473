"""Between text and tensors: chat templates, the one shift, and whether two vocabularies agree."""

from tutelage.text.chat import Formatted, Formatter, TooLongError
from tutelage.text.collate import collate, cut, num_tokens
from tutelage.text.vocabulary import VocabularyMatch, match

__all__ = [
    "Formatted",
    "Formatter",
    "TooLongError",
    "VocabularyMatch",
    "collate",
    "cut",
    "match",
    "num_tokens",
]
