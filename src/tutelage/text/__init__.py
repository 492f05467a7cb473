"""Between text and tensors: chat templates, the one shift, and whether two vocabularies agree."""

from tutelage.text.chat import Formatted, Formatter, TooLongError
from tutelage.text.collate import collate, cut, num_tokens
from tutelage.text.contexts import COLUMNS, Context, Shown, TeacherView, wording_file
from tutelage.text.vocabulary import VocabularyMatch, match

__all__ = [
    "COLUMNS",
    "Context",
    "Formatted",
    "Formatter",
    "Shown",
    "TeacherView",
    "TooLongError",
    "VocabularyMatch",
    "collate",
    "cut",
    "match",
    "num_tokens",
    "wording_file",
]
