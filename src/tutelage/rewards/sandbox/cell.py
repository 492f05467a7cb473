"""What a program that nobody has read may do, and how far this machine can cut it off."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeAlias, final

from annotated_types import Gt
from pydantic import PositiveInt

from tutelage.core.errors import ConfigError
from tutelage.core.settings import Settings

_LAUNCHER = Path(__file__).with_name("launcher.py")
_NAMESPACES = ("--net", "--pid", "--ipc", "--uts", "--mount", "--fork", "--kill-child")
_FIRST_USER, _NUM_USERS = 60600, 500
"""User ids that systemd leaves unassigned; a running program has one to itself."""
_slots = itertools.count()


IsolationChoice: TypeAlias = Literal["best", "namespaces", "limits"]
"""`best` takes namespaces where the machine grants them; `namespaces` refuses to run without;
`limits` never asks for them."""


@final
class Limits(Settings):
    """How much of the machine one program may use. The kernel enforces every one of them."""

    cpu_seconds: PositiveInt | None = 5
    """Processor time of each of its processes; null is without end."""
    wall_seconds: Annotated[float, Gt(0)] | None = 20.0
    """From start to end, waiting included; null is without end."""
    memory_megabytes: PositiveInt = 512
    """Address space of each of its processes."""
    processes: PositiveInt = 16
    """Processes and threads at one time. The kernel does not count those of the superuser: see
    `Isolation.other_user`."""
    file_megabytes: PositiveInt = 8
    """Size of each file it writes, its output included."""
    folder_megabytes: PositiveInt = 64
    """All files in its folder together; only with namespaces."""


@final
@dataclass(frozen=True, kw_only=True)
class Isolation:
    """How far a program is cut off, beyond its limits."""

    namespaces: bool
    """It has no network, sees no other process, may write in its own folder only, and finds
    homes and temporary files empty."""
    other_user: bool
    """It runs as a user of its own, who owns nothing; only the superuser can grant that."""


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One program's place: how to start it, and the folder that is all its own."""

    process: subprocess.Popen[bytes]
    status: IO[bytes]
    """Where the launcher writes how the program ended."""

    def end(self) -> None:
        """End the program and all it has started, whatever state it is in."""
        if self.process.poll() is None:
            # The first process of a session leads a group with the session's own number.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                # What was not read any more may still lie in the buffer.
                with suppress(BrokenPipeError):
                    pipe.close()

    def outcome(self) -> dict[str, Any]:
        """What the launcher wrote; empty when it was ended before it could."""
        self.status.seek(0)
        text = self.status.readline()
        return json.loads(text) if text else {}


@contextmanager
def open_cell(
    source: bytes,
    limits: Limits,
    isolation: Isolation,
    *,
    streams: Sequence[IO[bytes] | int],
    libraries: bool = False,
) -> Generator[Cell]:
    """Start a Python program in a cell, and end it when the block is left.

    Args:
        source: the program.
        streams: its input, output and errors.
        libraries: let it import what this process can; otherwise the standard library alone.
    """
    with (
        tempfile.TemporaryDirectory(prefix="cell-") as folder,
        tempfile.TemporaryFile() as status,
    ):
        place = Path(folder).resolve()
        (place / "program.py").write_bytes(source)
        order = {
            "folder": str(place),
            "status": status.fileno(),
            "namespaces": isolation.namespaces,
            "user": _FIRST_USER + next(_slots) % _NUM_USERS if isolation.other_user else None,
            "limits": limits.model_dump(),
            "visible": _visible(libraries=libraries),
            "hidden": [str(Path.home())],
            "command": _command(libraries=libraries),
            "environment": _environment(place, libraries=libraries),
        }
        process = subprocess.Popen(  # noqa: S603 - the point: it runs in the cell made here
            [*_entry(isolation), _interpreter(), "-I", "-S", str(_LAUNCHER), json.dumps(order)],
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            cwd=place,
            env={},
            pass_fds=(status.fileno(),),
            start_new_session=True,
        )
        cell = Cell(process=process, status=status)
        try:
            yield cell
        finally:
            cell.end()


@cache
def best_isolation() -> Isolation:
    """The strictest isolation that works here, found by running an empty program in each."""
    root = os.geteuid() == 0
    for namespaces in (True, False):
        for other_user in (True, False) if root else (False,):
            isolation = Isolation(namespaces=namespaces, other_user=other_user)
            if works(isolation):
                return isolation
    return Isolation(namespaces=False, other_user=False)


def chosen_isolation(choice: IsolationChoice) -> Isolation:
    """What this machine grants of what was chosen.

    Raises:
        ConfigError: namespaces are asked for, and this machine refuses them.
    """
    if choice == "limits":
        return Isolation(namespaces=False, other_user=False)
    found = best_isolation()
    if choice == "namespaces" and not found.namespaces:
        raise ConfigError(
            "rewards.isolation is namespaces; it must be best or limits on this machine, which "
            "refuses them. Allow user namespaces and install unshare (util-linux), or choose "
            "best where what a student writes may reach the network and the files of this user."
        )
    return found


def works(isolation: Isolation) -> bool:
    """Whether a program can be started under this isolation on this machine."""
    if isolation.namespaces and not shutil.which("unshare"):
        return False
    devnull = subprocess.DEVNULL
    streams = (devnull, devnull, devnull)
    with open_cell(b"import json", Limits(wall_seconds=60), isolation, streams=streams) as cell:
        cell.process.wait()
        return cell.outcome().get("exit") == 0


def _entry(isolation: Isolation) -> list[str]:
    if not isolation.namespaces:
        return []
    own_user = [] if isolation.other_user else ["--user", "--map-root-user"]
    return [shutil.which("unshare") or "unshare", *own_user, *_NAMESPACES, "--mount-proc"]


def _interpreter() -> str:
    """The Python that this one was made from, without a virtual environment around it."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return str(Path(base).resolve())


def _command(*, libraries: bool) -> list[str]:
    flags = ["-B", "-s", "-P"]
    return [sys.executable, *flags, "program.py"] if libraries else [
        _interpreter(), *flags, "-S", "program.py"
    ]  # fmt: skip


def _environment(folder: Path, *, libraries: bool) -> dict[str, str]:
    """All the environment a program gets: nothing of ours."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if libraries:
        environment["PYTHONPATH"] = os.pathsep.join(_import_paths())
    return environment


def _import_paths() -> list[str]:
    return [path for path in sys.path if path and Path(path).is_dir()]


def _visible(*, libraries: bool) -> list[str]:
    """The folders that the interpreter needs, even where they lie in a home."""
    paths = [sys.base_prefix]
    if libraries:
        paths += [sys.prefix, *_import_paths()]
    real = {str(Path(path).resolve()) for path in paths}
    # A folder inside another one comes with it.
    return sorted(p for p in real if not any(p.startswith(f"{q}/") for q in real))
