"""`tutelage serve` as a process of its own, and a proxy in front of it that may misbehave."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final

import httpx2
from typing_extensions import override

TOKEN = "-".join(("open", "sesame"))


@final
class Server:
    """A real server on a port of its own; killed, it may be started again at the same address."""

    def __init__(self, model: Path, *options: str, token: str | None = TOKEN) -> None:
        self._words = [sys.executable, "-m", "tutelage.cli.main", "serve", str(model), *options]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if token is not None:
            self._environment["TUTELAGE_TOKEN"] = token
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self.url = ""

    def start(self) -> "Server":
        words = [*self._words, "--port", str(self._port)]
        self._process = subprocess.Popen(
            words, env=self._environment, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert " at http://" in line, line
        self.url = line.split(" at ")[1].split(",")[0]
        self._port = int(self.url.rsplit(":", 1)[1])
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextmanager
def serving(model: Path, *options: str, token: str | None = TOKEN) -> Generator[Server]:
    server = Server(model, *options, token=token).start()
    try:
        yield server
    finally:
        server.kill()


@final
@dataclass(frozen=True)
class Reply:
    """What goes back to whoever asked; None as a status closes the connection without a word."""

    status: int | None
    body: bytes
    kind: str = "application/octet-stream"


Answerer = Callable[[str, bytes, Mapping[str, str]], Reply]
Twist = Callable[[str, Reply], Reply]


@final
class Listener:
    """A real HTTP server in a thread of this process; counts who asks for what."""

    def __init__(self, answer: Answerer) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        lock, listener = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(b"")

            def do_POST(self) -> None:
                self._reply(self.rfile.read(int(self.headers["Content-Length"])))

            def _reply(self, body: bytes) -> None:
                with lock:
                    listener.asked.append(self.path)
                    listener.at_once += 1
                    listener.most_at_once = max(listener.most_at_once, listener.at_once)
                try:
                    reply = answer(self.path, body, dict(self.headers))
                finally:
                    with lock:
                        listener.at_once -= 1
                if reply.status is None:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.kind)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            @override
            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            @override
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that has given up is no news."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def listening(answer: Answerer) -> Generator[Listener]:
    listener = Listener(answer)
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def between(server: Server, twist: Twist) -> Generator[Listener]:
    """Hands everything on to the server, and what comes back through `twist`."""
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as client:

        def forward(path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
            kept = {n: v for n, v in headers.items() if n.lower() == "authorization"}
            found = client.request("POST" if body else "GET", path, content=body, headers=kept)
            kind = found.headers.get("content-type", "")
            return twist(path, Reply(found.status_code, found.content, kind))

        with listening(forward) as listener:
            yield listener
