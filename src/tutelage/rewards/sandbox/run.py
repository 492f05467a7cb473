"""Runs one program from its input to its end."""

import subprocess
import tempfile
from dataclasses import dataclass
from typing import IO, Any, final

from tutelage.core.errors import OutputError
from tutelage.rewards.sandbox.cell import Cell, Isolation, Limits, open_cell

_GRACE_SECONDS = 30.0
"""How long after its time the launcher itself is waited for, on a busy machine."""


@final
@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program ended, and what it said."""

    stdout: str
    stderr: str
    trouble: str
    """Empty for a program that ended by itself with success; otherwise why not, in a few words."""


def run_program(
    source: str,
    given: str,
    limits: Limits,
    isolation: Isolation,
    *,
    output_bytes: int = 65_536,
) -> Ended:
    """Run Python source in a cell with `given` as its input.

    Args:
        output_bytes: how much of its output is looked at; one that writes more has failed.

    Raises:
        OutputError: the cell itself could not be made.
    """
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(given.encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        text = source.encode("utf-8", "surrogatepass")
        with open_cell(text, limits, isolation, streams=(stdin, stdout, stderr)) as cell:
            outcome = _wait(cell, limits)
        spoken, complaint = _read(stdout, output_bytes + 1), _read(stderr, output_bytes + 1)
    trouble = _trouble(outcome, limits, complaint)
    if max(len(spoken), len(complaint)) > output_bytes:
        trouble = f"more than {output_bytes} bytes of output"
    return Ended(
        stdout=spoken[:output_bytes].decode("utf-8", "replace"),
        stderr=complaint[:output_bytes].decode("utf-8", "replace"),
        trouble=trouble,
    )


def _wait(cell: Cell, limits: Limits) -> dict[str, Any]:
    """The launcher ends the program in time; this is for a launcher that cannot."""
    patience = None if limits.wall_seconds is None else limits.wall_seconds + _GRACE_SECONDS
    try:
        cell.process.wait(patience)
    except subprocess.TimeoutExpired:
        cell.end()
    outcome = cell.outcome()
    if "refused" in outcome:
        raise OutputError(
            f"A place to run programs apart is refused ({outcome['refused']}); it must be "
            "possible to start a process with limits and a folder of its own. Run on a machine "
            "that allows it, or leave the code_tests reward out."
        )
    return outcome


def _read(file: IO[bytes], num_bytes: int) -> bytes:
    file.seek(0)
    return file.read(num_bytes)


def _trouble(outcome: dict[str, Any], limits: Limits, complaint: bytes) -> str:
    if not outcome or outcome["late"]:
        return "out of time"
    if outcome["exit"] < 0:
        used_up = limits.cpu_seconds and outcome["cpu_seconds"] >= limits.cpu_seconds - 0.5
        return "out of processor time" if used_up else f"killed by signal {-outcome['exit']}"
    if outcome["exit"] > 0:
        last = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
        return (last or [f"exit code {outcome['exit']}"])[0][:200]
    return ""
