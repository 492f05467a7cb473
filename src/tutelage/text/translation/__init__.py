"""One text in two tokenizers: bytes, groups of tokens that say the same, words in common."""

from tutelage.text.translation.groups import Span, spans_of
from tutelage.text.translation.specials import Side, paired_specials
from tutelage.text.translation.spelling import Spelling
from tutelage.text.translation.translator import TranslatedBatch, Translation, Translator
from tutelage.text.translation.words import shared_words

__all__ = [
    "Side",
    "Span",
    "Spelling",
    "TranslatedBatch",
    "Translation",
    "Translator",
    "paired_specials",
    "shared_words",
    "spans_of",
]
