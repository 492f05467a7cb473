"""What Tutelage logs, as the command line shows it: once, on standard error, beside its bars."""

import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import FAST, Words
from tests.tiny_models import write_gguf
from tutelage.cli.console import err, log_shown

CONVERTING = "Converting tiny.gguf to safetensors"
CHOSEN = "of 2 stay: influence chose them."


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A run that converts its teacher's file and has influence choose the student's layer."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    settings = ("output=run", "teacher=tiny.gguf", "student.keep_layers=1")
    return ("train", "tiny", *FAST, *settings)


def test_a_run_says_what_it_converts_and_which_layers_it_keeps_once(
    tutelage: Words, words: tuple[str, ...]
) -> None:
    result = tutelage(*words)
    assert result.exit_code == 0, result.output
    for text in (CONVERTING, CHOSEN):
        (line,) = [line for line in result.stderr.splitlines() if text in line]
        assert not line.startswith(("INFO", "info"))
        assert text not in result.stdout


@pytest.mark.slow
def test_on_a_terminal_a_log_line_stands_by_itself_above_the_bar(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("tutelage")), *words]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    screen = b"".join(pieces(ours)).decode()
    assert process.wait(timeout=60) == 0, screen
    # What a terminal would show of each line: nothing from before it was last erased.
    shown = [re.split(r"\x1b\[2K", line)[-1].strip("\r") for line in screen.split("\n")]
    for text in (CONVERTING, CHOSEN):
        (line,) = [line for line in shown if text in line]
        assert "\x1b" not in line
        assert line.startswith(text if text == CONVERTING else "Layers ")
    assert "Making the student" in screen


def pieces(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            # The other end is closed: that is how a terminal ends.
            break
        if not piece:
            break
        yield piece
    os.close(terminal)


def test_warnings_say_that_they_are_and_debugging_stays_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("tutelage.anywhere")
    with log_shown():
        logger.warning("a [red]path[/red] with %s", "brackets")
        logger.debug("not for everybody")
    assert capsys.readouterr().err == "warning: a [red]path[/red] with brackets\n"


def test_nothing_is_said_twice_and_nothing_is_left_behind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger, root = logging.getLogger("tutelage"), logging.getLogger()
    before = (logger.level, logger.propagate, list(logger.handlers))
    theirs = logging.StreamHandler(sys.stderr)
    root.addHandler(theirs)
    try:
        with log_shown():
            logger.info("once")
    finally:
        root.removeHandler(theirs)
    assert capsys.readouterr().err == "once\n"
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_log_and_bars_share_one_console() -> None:
    with log_shown():
        shared = err()
        assert err() is shared
    assert err() is not shared
