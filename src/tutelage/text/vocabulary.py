"""Whether two models speak the same language, and which entries of their heads mean something.

Heads of one family are often padded to different sizes (a multiple of 64, of 128, of the number of
ranks). Entries behind the last real token are nobody's: they are masked on both sides.
"""

from dataclasses import dataclass
from typing import final

from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import ModelError


@final
@dataclass(frozen=True, kw_only=True)
class VocabularyMatch:
    """The entries that student and teacher share: ids 0 to num_real - 1."""

    num_real: int
    student_excluded: int
    """Rows of the student's head behind the shared ones."""
    teacher_excluded: int
    """Rows of the teacher's head behind the shared ones."""


def match(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_rows: int,
    teacher_rows: int,
) -> VocabularyMatch:
    """The shared entries of two models whose tokenizers agree.

    Agree means: every ordinary token has the same id on both sides. Special and added tokens may
    differ behind the last shared one, where they are excluded like padding.

    Args:
        student_rows: entries of the student's head, padding included.
        teacher_rows: entries of the teacher's head, padding included.

    Raises:
        ModelError: for different tokenizers, or a head smaller than its tokenizer needs.
    """
    student, teacher = _words(student_tokenizer), _words(teacher_tokenizer)
    _check_rows("student", student, student_rows)
    _check_rows("teacher", teacher, teacher_rows)
    num_shared = _num_shared(student, teacher)
    if not agree(student_tokenizer, teacher_tokenizer):
        mine, theirs = _at(student, num_shared), _at(teacher, num_shared)
        message = (
            f"The student's token {num_shared} is {mine!r} and the teacher's is {theirs!r}; "
            "both models must have the same tokenizer. Choose a student of the teacher's family, "
            "or a pruned or fresh one, which takes the teacher's tokenizer; or an objective across "
            "vocabularies, such as objective.kind: aligned_kl."
        )
        raise ModelError(message)
    return VocabularyMatch(
        num_real=num_shared,
        student_excluded=student_rows - num_shared,
        teacher_excluded=teacher_rows - num_shared,
    )


def agree(
    student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether every ordinary token has the same id on both sides: what `match` asks for."""
    student, teacher = _words(student_tokenizer), _words(teacher_tokenizer)
    num_shared = _num_shared(student, teacher)
    both = (student_tokenizer, teacher_tokenizer)
    added = {str(token) for one in both for token in one.added_tokens_decoder.values()}
    beyond = [*student[num_shared:], *teacher[num_shared:]]
    return all(word is None or word in added for word in beyond)


def _num_shared(student: list[str | None], teacher: list[str | None]) -> int:
    length = max(len(student), len(teacher))
    return next((at for at in range(length) if _at(student, at) != _at(teacher, at)), length)


def _words(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """Tokens by id; None where no token has the id."""
    vocabulary = tokenizer.get_vocab()
    words: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for word, index in vocabulary.items():
        words[index] = word
    return words


def _at(words: list[str | None], index: int) -> str | None:
    return words[index] if index < len(words) else None


def _check_rows(who: str, words: list[str | None], rows: int) -> None:
    if len(words) > rows:
        message = (
            f"The {who}'s head has {rows} entries and its tokenizer {len(words)}; the head must "
            "have at least as many. Load the tokenizer that belongs to the model."
        )
        raise ModelError(message)
