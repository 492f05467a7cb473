# pyright: basic
# Runs on its own, outside the package: it sees nothing but the standard library.
"""Cuts itself off from the machine, then becomes two: a program under limits, and its warden.

Started by `run.py` as `python -I -S launcher.py ORDER`, inside new namespaces where the machine
allows them. ORDER is a JSON object, see `Order` there. The warden waits for the program, ends
everything when the time is up, and writes one JSON object to the file descriptor `status`.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import stat
import sys
from pathlib import Path

MS_BIND, MS_REC = 0x1000, 0x4000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 28, 38
SECBIT_NOROOT_LOCKED = 0b11
HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - never written
MEGABYTE = 2**20

libc = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    """What mount_setattr is told."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def checked(outcome: int, what: str) -> None:
    """Stop at the first call the kernel refuses: half a cell is none."""
    if outcome != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: bytes, flags: int, options: str) -> None:
    """Put one more thing into the tree of files."""
    checked(
        libc.mount(source.encode(), target.encode(), kind, flags, options.encode()),
        f"mount {target}",
    )


def hide(order: dict) -> None:
    """Put empty folders over homes and temporary files, all but the interpreter read-only."""
    kept = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in order["visible"]]
    hidden = []
    for path in dict.fromkeys((*HIDDEN, *order["hidden"])):
        if Path(path).is_dir() and not Path(path).is_symlink() and path != "/":
            mount("tmpfs", path, b"tmpfs", 0, "mode=755,size=1m")
            hidden.append(path)
    for path, folder in kept:
        if any(path == cover or path.startswith(f"{cover}/") for cover in hidden):
            Path(path).mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{folder}", path, b"", MS_BIND | MS_REC, "")
        os.close(folder)
    Path(order["folder"]).mkdir(parents=True, exist_ok=True)
    attributes = MountAttributes(set=MOUNT_ATTR_RDONLY)
    outcome = libc.syscall(
        SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE,
        ctypes.byref(attributes), ctypes.sizeof(attributes),
    )  # fmt: skip
    checked(outcome, "mount_setattr /")
    owner = order["user"] if order["user"] is not None else os.getuid()
    size = order["limits"]["folder_megabytes"]
    mount("tmpfs", order["folder"], b"tmpfs", 0, f"mode=700,uid={owner},size={size}m")


def give_up_rights(order: dict) -> None:
    """Become nobody in particular; no later program can regain anything."""
    if order["user"] is not None:
        os.setgroups([])
        os.setresgid(order["user"], order["user"], order["user"])
        os.setresuid(order["user"], order["user"], order["user"])
    elif order["namespaces"]:
        checked(libc.prctl(PR_SET_SECUREBITS, SECBIT_NOROOT_LOCKED, 0, 0, 0), "securebits")
    if sys.platform == "linux":
        checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        # A warden that is killed takes its program along.
        checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")


def set_limits(limits: dict) -> None:
    """What the kernel itself enforces, for each process of the program."""
    for name, value in (
        ("RLIMIT_CPU", limits["cpu_seconds"] or resource.RLIM_INFINITY),
        ("RLIMIT_AS", limits["memory_megabytes"] * MEGABYTE),
        ("RLIMIT_FSIZE", limits["file_megabytes"] * MEGABYTE),
        ("RLIMIT_NPROC", limits["processes"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


def become_the_program(order: dict, status: int) -> None:
    """Never returns: what cannot be set up is written down, and the program is not started."""
    try:
        give_up_rights(order)
        set_limits(order["limits"])
        fcntl.fcntl(status, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        os.execve(order["command"][0], order["command"], order["environment"])  # noqa: S606 - it is
    except BaseException as error:  # noqa: BLE001 - there is nobody above to tell
        write(status, {"refused": str(error)})
        os._exit(1)


def write(status: int, outcome: dict) -> None:
    """One JSON object on a line of its own; the first line is the one that counts."""
    os.write(status, json.dumps(outcome).encode() + b"\n")


def watch(child: int, order: dict, status: int) -> None:
    """Wait for the program, or for the time to be up; then end all it has started."""
    late = []

    def time_is_up(_signal: int, _frame: object) -> None:
        late.append(signal.SIGALRM)
        kill_all(child, order)

    signal.signal(signal.SIGALRM, time_is_up)
    signal.setitimer(signal.ITIMER_REAL, order["limits"]["wall_seconds"] or 0, 1.0)
    while True:
        done, code, used = os.wait4(-1, 0)
        if done == child:
            break
    signal.setitimer(signal.ITIMER_REAL, 0)
    cpu_seconds = used.ru_utime + used.ru_stime
    outcome = {"late": bool(late), "cpu_seconds": cpu_seconds}
    write(status, {**outcome, "exit": os.waitstatus_to_exitcode(code)})
    kill_all(child, order)


def kill_all(child: int, order: dict) -> None:
    """Everything but this process itself; in a namespace of its own that is all it can see."""
    with contextlib.suppress(ProcessLookupError):
        if order["namespaces"]:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(child, signal.SIGKILL)


def main() -> None:
    """One program, from order to status."""
    order = json.loads(sys.argv[1])
    status = order["status"]
    try:
        source = Path("program.py").read_bytes()
        if order["namespaces"]:
            hide(order)
        os.chdir(order["folder"])
        if order["namespaces"]:
            Path("program.py").write_bytes(source)
        Path("program.py").chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        if order["user"] is not None and not order["namespaces"]:
            os.chown(order["folder"], order["user"], order["user"])
    except OSError as error:
        write(status, {"refused": str(error)})
        sys.exit(1)
    child = os.fork()
    if child == 0:
        if not order["namespaces"]:
            os.setpgid(0, 0)
        become_the_program(order, status)
    watch(child, order, status)


if __name__ == "__main__":
    main()
