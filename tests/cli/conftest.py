"""The command line in this process, in an empty working folder of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tutelage.cli.console import DEBUG_VARIABLE
from tutelage.cli.main import app

Words = Callable[..., Result]

FAST = (
    "training.num_steps=4",
    "training.warmup_steps=0",
    "training.evaluate_every=null",
    "training.save_every=2",
    "evaluation.num_rows=4",
    "evaluation.num_samples=1",
    "evaluation.max_sample_tokens=4",
    "evaluation.num_token_rows=1",
    "report.enabled=false",
)
"""Overrides that make `tiny` a matter of a second."""


@pytest.fixture
def tutelage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    monkeypatch.chdir(tmp_path)
    # Set, so that what `--debug` writes there is taken back after the test.
    monkeypatch.setenv(DEBUG_VARIABLE, "")
    # Wide enough that no table cell is broken into two lines.
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words))

    return run
