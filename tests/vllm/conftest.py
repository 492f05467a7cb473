"""A real vLLM: one server for all tests here, started as the docs say, and a way to disturb it."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.models import CausalLM, save_model
from tutelage.rollouts.engines import VllmEngine, VllmSettings
from tutelage.rollouts.engines.vllm.child import VARIABLE
from tutelage.rollouts.engines.vllm.server import EXTENSION, INSIDE

ROOT = Path(__file__).parents[2]
ROOM = 256
START_SECONDS = 600
# What vLLM's attention on CPUs can do: heads of 32 and more.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": ROOM,
}


def student(seed: int = 0, **overrides: Any) -> CausalLM:
    """Tied, for that is where weights are easiest lost on their way; it ends at a few tokens."""
    sizes = {**SIZES, "tie_word_embeddings": True, **overrides}
    lm = CausalLM(tiny_llama(seed, **sizes))
    lm.model.generation_config.eos_token_id = [257, 259, *range(0, 60, 6)]
    return lm


def moved(lm: CausalLM, *, by: float = 0.05) -> CausalLM:
    """The same student some steps later."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return lm


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """Where vLLM is; without one, the tests here are skipped, and say so."""
    python = Path(os.environ.get(VARIABLE, ROOT / ".venv-vllm/bin/python"))
    if not python.is_file():
        pytest.skip(f"THERE IS NO vLLM AT {python}: run `make vllm`")
    return str(python)


@dataclass
class Server:
    """A server and how to reach it."""

    url: str
    log: Path

    def engine(self, url: str | None = None, **settings: Any) -> VllmEngine:
        given = VllmSettings(mode="server", url=url or self.url, **settings)
        return VllmEngine(given, dtype=torch.float32, room=ROOM)


@pytest.fixture(scope="session")
def vllm_server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("vllm")
    save_model(student(), byte_tokenizer(), folder / "model")
    server = Server(f"http://127.0.0.1:{free_port()}", folder / "log")
    process = started(vllm_python, folder / "model", server)
    try:
        await_answers(server, process)
        yield server
    finally:
        stopped(process)


def started(vllm_python: str, model: Path, server: Server) -> subprocess.Popen[bytes]:
    """A server as the docs say, and all its processes in a group of their own."""
    port = server.url.rpartition(":")[2]
    command = [
        vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--port", port, "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
        "--logprobs-mode", "processed_logprobs", "--worker-extension-cls", EXTENSION,
        "--max-model-len", str(ROOM), "--kv-cache-memory-bytes", str(2**28),
    ]  # fmt: skip
    own = {
        "VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(INSIDE), "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    with server.log.open("ab") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **own}, start_new_session=True
        )


def await_answers(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(server.url):
        assert process.poll() is None, server.log.read_text()[-4000:]
        assert time.monotonic() < deadline, server.log.read_text()[-4000:]
        time.sleep(0.5)


def stopped(process: subprocess.Popen[bytes]) -> None:
    """At leisure, or else killed."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        killed(process)


def killed(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the server and whatever it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").is_success
    except httpx2.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass
class Troublemaker:
    """Stands between an engine and the real server: hangs up, and changes what is said."""

    url: str = ""
    num_hang_ups: int = 0
    """So many of the next requests for a completion get no answer."""
    spoil: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    """By path, what becomes of an answer."""
    status: dict[str, int] = field(default_factory=dict)
    """By path, what the answer is in place of the server's."""
    asked: list[str] = field(default_factory=list)
    """Paths of all requests."""


@pytest.fixture
def trouble(vllm_server: Server) -> Iterator[Troublemaker]:
    found = Troublemaker()
    client = httpx2.Client(base_url=vllm_server.url, timeout=60)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.pass_on("GET")

        def do_POST(self) -> None:
            self.pass_on("POST")

        def pass_on(self, method: str) -> None:
            path = self.path.partition("?")[0]
            found.asked.append(path)
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path == "/v1/completions" and found.num_hang_ups > 0:
                found.num_hang_ups -= 1
                self.close_connection = True
                return
            kind = {"Content-Type": "application/json"}
            answer = client.request(method, self.path, content=sent, headers=kind)
            body, status = answer.content, found.status.get(path, answer.status_code)
            if path in found.spoil:
                body = json.dumps(found.spoil[path](json.loads(body))).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()
    client.close()
