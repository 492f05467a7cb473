"""Between text and tensors: chat templates, the one shift, and whether two vocabularies agree."""

from tutelage.text.chat import Formatted, Formatter, TooLongError
from tutelage.text.collate import collate, cut, key_of, num_tokens
from tutelage.text.contexts import COLUMNS, Context, Shown, TeacherView, wording_file
from tutelage.text.fingerprint import template_hash, tokenizer_hash
from tutelage.text.vocabulary import VocabularyMatch, agree, match

__all__ = [
    "COLUMNS",
    "Context",
    "Formatted",
    "Formatter",
    "Shown",
    "TeacherView",
    "TooLongError",
    "VocabularyMatch",
    "agree",
    "collate",
    "cut",
    "key_of",
    "match",
    "num_tokens",
    "template_hash",
    "tokenizer_hash",
    "wording_file",
]
