"""A vLLM of the run's own: started beside it, gone with it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import final

import httpx2

from tutelage.core.errors import MissingDependencyError, ModelError
from tutelage.rollouts.engines.vllm.server import EXTENSION, INSIDE, VllmServer
from tutelage.rollouts.engines.vllm.settings import VllmSettings

VARIABLE = "TUTELAGE_VLLM_PYTHON"
_BESIDE = Path(".venv-vllm/bin/python")
_KEEPER = Path(__file__).with_name("keeper.py")
_GIGABYTE = 2**30
_LOG_LINES = 8
_PREFIX = re.compile(r"^(\([^)]*\) )?([A-Z]+ \d\d-\d\d \S+ \[[^\]]*\] ?)?")
"""Which process, and when it said so."""
_TELLING = re.compile(r"^(\w+\.)*\w*(Error|Exception|Exit)\b.*: ")
_POLL_SECONDS = 0.25
_STOP_SECONDS = 15
_UNLESS_SET = {
    # The run and vLLM compute by turns: both may have every core.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_ENVIRONMENT = {
    # Weights can be given to no other kind of server.
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def vllm_python(settings: VllmSettings) -> Path:
    """The Python that has vLLM.

    Raises:
        MissingDependencyError: there is none where it was looked for.
    """
    named = settings.python or os.environ.get(VARIABLE)
    if named is not None:
        found = Path(named).expanduser()
    elif _BESIDE.is_file() or find_spec("vllm") is None:
        found = _BESIDE
    else:
        found = Path(sys.executable)
    if not found.is_file():
        raise MissingDependencyError(
            f"rollouts.engine is vllm, and {found} is no Python that has it; there must be one. "
            f"Run `make vllm` for a vLLM on CPUs, or name its Python in rollouts.vllm.python or "
            f"in {VARIABLE}."
        )
    # Not resolved: a virtual environment's Python is a link, and it matters which.
    return found.absolute()


@final
class VllmChild:
    """A server on a socket in a folder of ours, which nobody else can open.

    Args:
        folder: of weights, which go with the server should the run be killed.
        model: inside of it, the config and first weights.
        dtype: what vLLM computes in.
        room: the longest prompt with its completion.
    """

    def __init__(
        self, settings: VllmSettings, folder: Path, model: Path, *, dtype: str, room: int
    ) -> None:
        # Not where the weights are: the path of a socket may not be long.
        self._own = Path(tempfile.mkdtemp(prefix="tutelage-vllm-"))
        self._log, self._socket = self._own / "vllm.log", self._own / "socket"
        self._patience = settings.patience_seconds
        command = [
            str(vllm_python(settings)), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(model), "--served-model-name", "student", "--uds", str(self._socket),
            "--skip-tokenizer-init", "--generation-config", "vllm",
            "--dtype", dtype, "--max-model-len", str(room),
            "--logprobs-mode", "processed_logprobs",
            "--kv-cache-memory-bytes", str(int(settings.cache_gigabytes * _GIGABYTE)),
            "--worker-extension-cls", EXTENSION,
            "--disable-uvicorn-access-log",
            *settings.arguments,
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  a command of ours
                [sys.executable, str(_KEEPER), str(folder), str(self._own), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**_UNLESS_SET, **os.environ, **_ENVIRONMENT, "PYTHONPATH": str(INSIDE)},
                start_new_session=True,
            )
        transport = httpx2.HTTPTransport(
            uds=str(self._socket), limits=httpx2.Limits(max_connections=None)
        )
        client = httpx2.Client(
            transport=transport,
            base_url="http://vllm",
            timeout=settings.timeout_seconds,
            trust_env=False,
        )
        self.server = VllmServer("The run's own vLLM", client)

    def wait(self) -> None:
        """Until it answers.

        Raises:
            ModelError: it ended instead, or took too long.
        """
        deadline = time.monotonic() + self._patience
        while not (self._listens() and self.server.is_up()):
            self.refuse_dead()
            if time.monotonic() > deadline:
                raise ModelError(
                    f"The run's own vLLM has not answered for {self._patience:g} seconds; it must "
                    f"start in that time. Raise rollouts.vllm.patience_seconds. {self._last_words}"
                )
            time.sleep(_POLL_SECONDS)

    def _listens(self) -> bool:
        # Asked by hand: the client leaves a socket open that nobody listens to.
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(str(self._socket)) == 0

    def refuse_dead(self) -> None:
        """Go on only if it runs.

        Raises:
            ModelError: it has ended; with its last words.
        """
        code = self._process.poll()
        if code is not None:
            raise ModelError(
                f"The run's own vLLM has ended with code {code}; it must run as long as the run "
                "does. Mend what it says below, or set rollouts.engine: auto, and go on with "
                f"--resume. {self._last_words}"
            )

    def stop(self) -> None:
        """Take it down; doing it twice changes nothing."""
        self.server.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._own, ignore_errors=True)

    @property
    def _last_words(self) -> str:
        return "vLLM says:\n" + "\n".join(telling(self._log.read_text("utf-8", "replace")))


def telling(log: str) -> Sequence[str]:
    """The lines of a log that say what went wrong, the first cause first; else its last ones."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    lines = [line for line in lines if line]
    found = [line for line in lines if _TELLING.match(line)]
    return list(dict.fromkeys(found))[:_LOG_LINES] or lines[-_LOG_LINES:]
