"""Runs a server for as long as somebody holds its standard input open, then takes it down.

Started as a script between a run and its vLLM: however the run ends, kill -9 included, the pipe
closes, the server and all of its processes go, and so do the folders with the weights and the
socket. It may import nothing of this package.

    python keeper.py FOLDER FOLDER COMMAND...
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_GRACE_SECONDS = 10
_POLL_SECONDS = 0.1


def main(folders: list[str], command: list[str]) -> int:
    """Answers with the server's exit code."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    gone = threading.Event()

    def wait_for_the_run() -> None:
        sys.stdin.buffer.read()
        gone.set()

    signal.signal(signal.SIGTERM, lambda _number, _frame: gone.set())
    threading.Thread(target=wait_for_the_run, daemon=True).start()
    while server.poll() is None and not gone.wait(_POLL_SECONDS):
        pass
    _stop(server)
    if gone.is_set():
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    return server.wait()


def _stop(server: "subprocess.Popen[bytes]") -> None:
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE_SECONDS)
    # What it started is in its group, and may outlive it.
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    # The code is not needed any more, and a thread still reads what keeps Python from ending.
    os._exit(main(sys.argv[1:3], sys.argv[3:]) & 255)
