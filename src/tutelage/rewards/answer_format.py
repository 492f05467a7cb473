"""The reward for a completion of the right form, whatever it says."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, final

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from tutelage.core.records import Rollout, Verdict
from tutelage.core.settings import Settings
from tutelage.rewards.extraction import compiled
from tutelage.rewards.verifier import Verifier, paired

TagName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")]


@final
class FormatSettings(Settings):
    """1 for a completion that has every form asked for, 0 for one that lacks any."""

    kind: Literal["format"] = "format"
    pattern: str | None = None
    """A regular expression that the whole completion must match, `.` matching line ends too; space
    around the completion is left out."""
    tags: tuple[TagName, ...] = ()
    """Names of tags such as [think, answer]: each opened and closed exactly once, one after the
    other in this order."""
    must_end: bool = True
    """It must have ended by itself, not been cut at the length limit."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return None if pattern is None else compiled(pattern).pattern

    @model_validator(mode="after")
    def _asks_for_something(self) -> "FormatSettings":
        if self.pattern is None and not self.tags and not self.must_end:
            message = (
                "pattern, tags and must_end are all off; it must be that one of them is on. "
                "Ask for a form, or leave this reward out."
            )
            raise ValueError(message)
        return self


@final
class Format(Verifier):
    """Looks at the form alone."""

    def __init__(self, settings: FormatSettings) -> None:
        self._settings = settings

    @override
    def judge(self, rollouts: Sequence[Rollout], texts: Sequence[str]) -> list[Verdict]:
        return [self._judge_one(rollout, text) for rollout, text in paired(rollouts, texts)]

    def _judge_one(self, rollout: Rollout, text: str) -> Verdict:
        settings = self._settings
        parts: dict[str, float] = {}
        if settings.pattern is not None:
            whole = re.fullmatch(settings.pattern, text.strip(), re.DOTALL)
            parts["pattern"] = float(whole is not None)
        if settings.tags:
            parts["tags"] = float(_has_tags(text, settings.tags))
        if settings.must_end:
            parts["ended"] = float(not rollout.truncated and bool(rollout.completion_ids))
        lacking = [name for name, kept in parts.items() if not kept]
        note = f"fails {', '.join(lacking)}" if lacking else "right"
        return Verdict(reward=float(not lacking), parts=parts, note=note)


def _has_tags(text: str, tags: Sequence[str]) -> bool:
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    places = [text.find(mark) for mark in marks]
    once = all(text.count(mark) == 1 for mark in marks)
    return once and places == sorted(places)
