"""Which special tokens of two tokenizers do the same: names, ends of turns, ends of texts."""

from collections.abc import Mapping
from typing import final

from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import ConfigError, DataError
from tutelage.text.template import Template, eos_of
from tutelage.text.translation.spelling import Spelling

_ASKED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@final
class Side:
    """A tokenizer, how it spells, and how what it reads ends."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        """In place of the tokenizer's own."""
        self.spelling = Spelling(tokenizer)

    def end_of_turn(self) -> int | None:
        """What its chat template ends an answer with; None without a template."""
        if self.chat_template is None and not self.tokenizer.chat_template:
            return None
        template = Template(self.tokenizer, self.chat_template, {}, "The special tokens")
        try:
            return template.answer_after(_ASKED, num_prompt=1)[0][-1]
        except (ConfigError, DataError):
            # A template that wants more than a question and an answer says nothing here.
            return None


def paired_specials(
    student: Side,
    teacher: Side,
    *,
    conversations: bool,
    given: Mapping[str, str] | None = None,
) -> dict[int, int]:
    """The teacher's token for each of the student's that does the same; others are not there.

    What is `given` comes first. Then the ends: where rows are `conversations`, a turn's end is the
    other's turn's end; the end of a text is the other's. Then equal names.

    Args:
        given: the student's token by name to the teacher's.

    Raises:
        ConfigError: a name that its tokenizer does not have.
    """
    found: dict[int, int] = {}
    for mine, theirs in (given or {}).items():
        found[_special(student, mine, "student")] = _special(teacher, theirs, "teacher")
    turn = student.end_of_turn() if conversations else None
    if turn is not None and student.spelling.is_special(turn):
        found.setdefault(turn, teacher.end_of_turn() or eos_of(teacher.tokenizer))
    if student.tokenizer.eos_token_id is not None:
        found.setdefault(eos_of(student.tokenizer), eos_of(teacher.tokenizer))
    for name, mine in student.spelling.special.items():
        theirs = teacher.spelling.special.get(name)
        if theirs is not None and theirs not in found.values():
            found.setdefault(mine, theirs)
    return found


def _special(side: Side, name: str, who: str) -> int:
    if name not in side.spelling.special:
        known = ", ".join(sorted(side.spelling.special)[:8]) or "none"
        raise ConfigError(
            f"teacher.special_tokens names {name!r} of the {who}; it must be one of its special "
            f"tokens ({known}). Correct the name."
        )
    return side.spelling.special[name]
