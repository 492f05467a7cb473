"""How the command line speaks: one console, one line for an error, one code for each class."""

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar, final

import typer
from rich.console import Console
from typing_extensions import override

from tutelage.core.errors import TutelageError

P = ParamSpec("P")
R = TypeVar("R")

DEBUG_VARIABLE = "TUTELAGE_DEBUG"
INTERRUPTED = 130
BUG = 1

EXIT_CODES = (
    (0, "done"),
    (1, "a bug of Tutelage, or `doctor` found something wrong"),
    (2, "a setting, recipe or command that does not exist or contradicts another"),
    (3, "a row, column or file that cannot be used"),
    (4, "a model or tokenizer that cannot be loaded or does not fit its partner"),
    (5, "a checkpoint that is missing, damaged or of another run"),
    (6, "a number that is not finite"),
    (7, "a folder or file that cannot be written"),
    (8, "an optional package that is not installed"),
    (9, "a server that does not answer, or that answers what cannot be true"),
    (INTERRUPTED, "interrupted by Ctrl-C; what was learned is saved"),
)


_SHARED: ContextVar[Console | None] = ContextVar("console", default=None)


def out() -> Console:
    """Where results go: standard output, as wide as the terminal."""
    return Console(highlight=False)


def err() -> Console:
    """Where complaints and progress go: standard error, by one console for the whole of a word."""
    # Bound to the stream itself: `sys.stderr` is set aside while a model loads, and a bar with it.
    return _SHARED.get() or Console(file=sys.stderr, highlight=False)


@final
class _LogLines(logging.Handler):
    """Records as lines of a console, above whatever bar it shows."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    @override
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        word = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._console.print(f"{word}{text}", markup=False, soft_wrap=True)


@contextmanager
def log_shown() -> Generator[None]:
    """Show what Tutelage logs, once and on standard error, while the context lasts."""
    logger = logging.getLogger("tutelage")
    console = err()
    level, propagated, lines = logger.level, logger.propagate, _LogLines(console)
    shared = _SHARED.set(console)
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    # Some library may have given the root logger a handler, and would say it again.
    logger.propagate = False
    try:
        yield
    finally:
        _SHARED.reset(shared)
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.propagate = propagated


def debugging() -> bool:
    """Was `--debug` given?"""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def told_in_one_line(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose log is shown, and whose errors are a line each and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with log_shown():
                return command(*args, **kwargs)
        except TutelageError as error:
            _tell(error, str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            _tell(error, "Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:  # noqa: BLE001 - the last one to speak; --debug tells all
            text = f"{type(error).__name__}: {error}"
            _tell(error, f"{text}\nThis is a bug of Tutelage; --debug shows where.")
            raise typer.Exit(BUG) from None

    return run


def _tell(error: BaseException, text: str) -> None:
    if debugging():
        traceback.print_exception(error)
    for line in text.splitlines() or [type(error).__name__]:
        # Not through rich: a line must stay one line, whatever the width, and a path as it is.
        sys.stderr.write(f"tutelage: {line}\n")
