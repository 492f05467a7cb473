"""A real vLLM: one server for all tests here, started as the docs say."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.models import CausalLM, save_model

VARIABLE = "TUTELAGE_VLLM_PYTHON"
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
    sizes = {**SIZES, "tie_word_embeddings": True, **overrides}
    return CausalLM(tiny_llama(seed, **sizes))


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


@pytest.fixture(scope="session")
def vllm_server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("vllm")
    save_model(student(), byte_tokenizer(), folder / "model")
    log = folder / "log"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [
        vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model"),
        "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
        "--max-model-len", str(ROOM), "--kv-cache-memory-bytes", str(2**28),
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    server = Server(f"http://127.0.0.1:{port}", log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(server.url):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").is_success
    except httpx2.TransportError:
        return False
