"""Transformers without its log lines and progress bars."""

import io
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr

from transformers.utils import logging as chatter


@contextmanager
def quiet() -> Generator[None]:
    """Keep transformers off the screen for a while; errors pass as ever."""
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        # One of its bars asks nobody and writes to the screen itself.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
