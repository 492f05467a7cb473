# pyright: basic
# The door to starlette and uvicorn, which only those need who serve.
"""The served model's addresses, and who may ask: loopback, or whoever has the token."""

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tutelage.core.errors import ConfigError, DataError, MissingDependencyError, OutputError
from tutelage.teachers.remote.wire import (
    MEDIA_TYPE,
    Answer,
    Served,
    decode_question,
    digest,
    encode_answer,
)
from tutelage.teachers.serving.worker import Worker

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingDependencyError(
        f"The package {error.name} is not installed; `tutelage serve` must have it. "
        "Run: pip install 'tutelage[serve]'"
    ) from error

MOST_BYTES = 64 * 2**20
"""Of a request."""
_LOOK_SECONDS = 0.5
Handler = Callable[[Request], Awaitable[Response]]


def refuse_open_door(host: str, token: str | None) -> None:
    """Refuse to let everybody in who can reach the machine.

    Raises:
        ConfigError: the address is not loopback and there is no token, or an empty one.
    """
    if token is not None and (not token or not token.isascii() or not token.isprintable()):
        raise ConfigError("--token is empty or has other than plain letters; give a longer one.")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and token is None:
        raise ConfigError(
            f"--host is {host}, which others can reach, and there is no token; it must be "
            "127.0.0.1 without one. Put a token into TUTELAGE_TOKEN, or leave --host out and use "
            "an SSH tunnel."
        )


def make_app(worker: Worker, served: Served, head_file: Path, *, token: str | None) -> Starlette:
    """The application: /health for everybody, all else for whoever has the token."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def identity(_request: Request) -> Response:
        return JSONResponse(served.model_dump(mode="json"))

    async def head(_request: Request) -> Response:
        return FileResponse(head_file, media_type=MEDIA_TYPE)

    async def score(request: Request) -> Response:
        return await _score(request, worker, served)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/identity", _guarded(identity, token)),
            Route("/head", _guarded(head, token)),
            Route("/score", _guarded(score, token), methods=["POST"]),
        ]
    )


def run_app(app: Starlette, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        port: 0 takes a free one.
        ready: is told the address, once it is bound.

    Raises:
        ConfigError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be used ({error.strerror}); it must be a free "
            "address of this machine. Choose another."
        ) from error
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listening.getsockname()[1]}")
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


async def _score(request: Request, worker: Worker, served: Served) -> Response:
    body = await _body(request)
    if body is None:
        return _error(413, f"The request has more than {MOST_BYTES} bytes. Send fewer rows.")
    try:
        rows, wanted = decode_question(body)
        answers = await _answered(request, worker.submit(rows, wanted))
    except DataError as error:
        return _error(400, str(error))
    except OutputError as error:
        return _error(503, str(error))
    except Exception as error:  # noqa: BLE001  whoever asked is told; the next one may fit
        return _error(500, f"{type(error).__name__}: {error}")
    if answers is None:
        return _error(499, "The request was given up.")
    content = encode_answer(answers, asked=digest(body), weights=served.weights)
    return Response(content, media_type=MEDIA_TYPE)


def _guarded(handler: Handler, token: str | None) -> Handler:
    async def guarded(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode()
        # Takes the same time wherever the two differ.
        if token is None or hmac.compare_digest(given, f"Bearer {token}".encode()):
            return await handler(request)
        return _error(401, "The token is missing or wrong.")

    return guarded


async def _body(request: Request) -> bytes | None:
    """The whole body; None where it is too long, which is found before it is all there."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MOST_BYTES:
            return None
        pieces.append(piece)
    return b"".join(pieces)


async def _answered(request: Request, asked: Future[list[Answer]]) -> list[Answer] | None:
    """The answers; None where whoever asked has gone, and the question with it."""
    waiting = asyncio.wrap_future(asked)
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=_LOOK_SECONDS)
        if not waiting.done() and await request.is_disconnected():
            waiting.cancel()
            return None
    return waiting.result()


def _error(status: int, text: str) -> Response:
    content: dict[str, Any] = {"error": text}
    return JSONResponse(content, status_code=status)
