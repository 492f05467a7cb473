"""Whoever is told what a run is doing. The command line shows it; a library call stays silent."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, final

from typing_extensions import override


class Advance(Protocol):
    """Reports how far a stage has come."""

    def __call__(self, done: int, note: str = "") -> None:
        """So many of the stage's total are done; the note is a few words, such as a loss."""
        ...


class Narrator(ABC):
    """Told about stages as they begin, advance and end."""

    @abstractmethod
    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Something that takes a while begins, and ends with the context."""

    @abstractmethod
    def say(self, text: str) -> None:
        """One line worth reading."""


@final
class Silence(Narrator):
    """Tells nobody."""

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Advance]:
        def ignore(done: int, note: str = "") -> None:
            pass

        yield ignore

    @override
    def say(self, text: str) -> None:
        pass
