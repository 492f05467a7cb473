"""Where in a completion the answer stands, and what counts as the same answer."""

import re
from abc import ABC, abstractmethod
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal, TypeAlias, final

from pydantic import Field, field_validator
from typing_extensions import override

from tutelage.core.settings import Settings

_MOST_DIGITS = 400
"""A longer number is compared as text: nobody asks for it, and it could cost much time."""


class Extraction(Settings, ABC):
    """A way to find the answer in a text."""

    @abstractmethod
    def answer_in(self, text: str) -> str | None:
        """The answer without the space around it; None where there is none."""


@final
class Whole(Extraction):
    """All of the text is the answer."""

    kind: Literal["whole"] = "whole"

    @override
    def answer_in(self, text: str) -> str | None:
        return text.strip() or None


@final
class LastLine(Extraction):
    """The last line that holds more than space."""

    kind: Literal["last_line"] = "last_line"
    after: str = ""
    r"""Only what follows the last occurrence of these characters in the line, such as `=` or
    `####`; a line without them holds no answer. Empty takes the whole line."""

    @override
    def answer_in(self, text: str) -> str | None:
        lines = text.strip().splitlines()
        last = lines[-1] if lines else ""
        if self.after:
            _, found, last = last.rpartition(self.after)
            last = last if found else ""
        return last.strip() or None


@final
class Boxed(Extraction):
    r"""What the last `\boxed{...}` holds; braces inside it are balanced."""

    kind: Literal["boxed"] = "boxed"

    @override
    def answer_in(self, text: str) -> str | None:
        start = text.rfind("\\boxed{")
        if start < 0:
            return None
        start += len("\\boxed{")
        depth = 1
        for place in range(start, len(text)):
            if text[place] in "{}" and text[place - 1] != "\\":
                depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[start:place].strip() or None
        return None


@final
class Pattern(Extraction):
    """The last match of a regular expression."""

    kind: Literal["regex"] = "regex"
    pattern: str
    """In Python's syntax, `.` matching line ends too. The first group is the answer; without a
    group the whole match is. It meets whatever a student writes: avoid nested repetition."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return compiled(pattern).pattern

    @override
    def answer_in(self, text: str) -> str | None:
        matches = list(re.finditer(self.pattern, text, re.DOTALL))
        if not matches:
            return None
        found = matches[-1].group(1 if matches[-1].re.groups else 0)
        return (found or "").strip() or None


@final
class Tag(Extraction):
    """What stands between the last `<name>` and its `</name>`."""

    kind: Literal["tag"] = "tag"
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")] = "answer"
    """The tag's name, without the angle brackets."""

    @override
    def answer_in(self, text: str) -> str | None:
        before, closed, _ = text.rpartition(f"</{self.name}>")
        _, opened, answer = before.rpartition(f"<{self.name}>")
        return answer.strip() or None if closed and opened else None


ExtractionSettings: TypeAlias = Annotated[
    Whole | LastLine | Boxed | Pattern | Tag, Field(discriminator="kind")
]


@final
class Normalisation(Settings):
    """What may differ between two answers that count as the same."""

    ignore_case: bool = True
    """`Paris` is `paris`."""
    ignore_space: bool = True
    """Any run of space is one space."""
    ignore_final_stop: bool = True
    """`Paris.` is `Paris`."""
    compare_numbers: bool = True
    """`2.50`, `+2.5` and `$2.5` are one number; so are `1,200` and `1200`."""

    def of(self, answer: str) -> str:
        """A form that is equal for answers that count as the same."""
        form = " ".join(answer.split()) if self.ignore_space else answer
        form = form.casefold() if self.ignore_case else form
        form = form.removesuffix(".").rstrip() if self.ignore_final_stop else form
        return (_number(form) if self.compare_numbers else None) or form


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern, or a complaint in the house's words for pydantic to pass on."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        message = (
            f" is {pattern!r}; it must be a regular expression ({error}). Correct it, or escape "
            "the characters that mean themselves."
        )
        raise ValueError(message) from None


def _number(text: str) -> str | None:
    """One spelling for each number, or None for what is no plain decimal number."""
    plain = re.fullmatch(r"([+-]?)\$?(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?", text, re.ASCII)
    if plain is None or not (plain[2] or plain[3]) or len(text) > _MOST_DIGITS:
        return None
    try:
        value = Decimal(f"{plain[1]}{(plain[2] or '0').replace(',', '')}{plain[3] or ''}")
    except InvalidOperation:
        return None
    digits = f"{value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits.strip("+-0") == "" else digits.lstrip("+")
