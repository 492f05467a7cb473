"""One server over HTTP: so many requests at a time, asked again, waited for, and told apart.

What passes (no connection, a timeout, an overloaded server) is tried again after a growing pause.
Once a request has failed too often the circuit opens: nothing more is sent but one probe now and
then, until the server is back and still the one it was. What does not pass is an error at once.
"""

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, final

import httpx2

from tutelage.core.errors import ConfigError, RemoteError
from tutelage.teachers.remote.settings import RemoteTeacherSettings

_LOG = logging.getLogger(__name__)
_FIRST_SECONDS, _MOST_SECONDS = 0.25, 30.0
_CONNECT_SECONDS = 10.0
_PASSING = frozenset({408, 425, 429, 502, 503, 504})
_BROKEN = 500
_REFUSED = frozenset({401, 403})
_SHOWN = 300
_JITTER = random.SystemRandom()
"""Of its own: how long somebody waited changes no draw of a run."""

Asked = TypeVar("Asked")
Given = TypeVar("Given")


@final
class SilentError(RemoteError):
    """Nobody answers, which may pass."""


@final
class Link:
    """The way to one server.

    Args:
        token: sent with every request, and shown nowhere.
    """

    def __init__(self, settings: RemoteTeacherSettings, token: str | None) -> None:
        self.url = settings.url
        self._settings = settings
        self._token = token
        self.known: Callable[[], None] = _anybody
        """Asked once the server is back: is it still the same? Raises RemoteError if not."""
        self._client = httpx2.Client(
            base_url=settings.url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(
                settings.timeout_seconds,
                connect=min(settings.timeout_seconds, _CONNECT_SECONDS),
                pool=None,
            ),
            limits=httpx2.Limits(max_connections=settings.max_concurrent),
            trust_env=False,
        )
        # Connections go with the link, whoever forgets to close it.
        weakref.finalize(self, self._client.close)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._gone: RemoteError | None = None
        self._num_pauses = 0

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def each(self, work: Callable[[Given], Asked], given: Sequence[Given]) -> list[Asked]:
        """The work done for each, at most `max_concurrent` at a time, in the given order."""
        self._stop.clear()
        with ThreadPoolExecutor(self._settings.max_concurrent) as pool:
            futures = [pool.submit(work, one) for one in given]
            try:
                return [future.result() for future in futures]
            except BaseException:
                # An error, or Ctrl-C: nobody waits for the server any more.
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise

    def get(self, path: str) -> httpx2.Response:
        """What is there, tried a few times but not waited for.

        Raises:
            RemoteError: no answer (SilentError), or a refusal; names the server.
        """
        reason = ""
        for failure in range(self._settings.retries + 1):
            response, reason = self._once(lambda: self._client.get(path))
            if response is not None and response.status_code != _BROKEN:
                return response
            if failure < self._settings.retries and self._stop.wait(_delay(failure)):
                break
        raise SilentError(
            f"The teacher's server {self.url} does not answer {path} ({reason}); it must be "
            "running. Start it, or correct teacher.url."
        )

    def post(self, path: str, **body: Any) -> httpx2.Response:  # noqa: ANN401  httpx's own
        """The answer to a request, however long the server is away, up to the run's patience.

        Raises:
            RemoteError: the server stayed away, refuses, or is another one; names it.
        """
        since: float | None = None
        failures = pauses = 0
        while True:
            seen = self._enter()
            response, reason = self._once(lambda: self._client.post(path, **body))
            if response is not None and response.status_code != _BROKEN:
                return response
            if response is not None and failures >= self._settings.retries:
                raise self.refusal(response)
            since = since or time.monotonic()
            failures += 1
            if failures <= self._settings.retries:
                self._wait(_delay(failures))
                continue
            pauses += 1
            self._pause(reason, since=since, seen=seen, delay=_delay(failures + pauses))
            failures = 0

    def refusal(self, response: httpx2.Response) -> RemoteError:
        """The error for a status that says no, in the server's words."""
        return RemoteError(
            f"The teacher's server {self.url} refuses {response.request.url.path} with "
            f"{response.status_code} ({self.clean(response.text)}); it must be 200. "
            f"{_ADVICE.get(response.status_code, 'See what the server logs.')}"
        )

    def clean(self, text: str) -> str:
        """A server's words, short, on one line and without the token."""
        if self._token:
            text = text.replace(self._token, "***")
        return " ".join(text.split())[:_SHOWN]

    def _once(self, send: Callable[[], httpx2.Response]) -> tuple[httpx2.Response | None, str]:
        """The answer, or None and why it may come later."""
        try:
            response = send()
        except httpx2.TransportError as error:
            return None, self.clean(f"{type(error).__name__}: {error}")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = self.clean(f"{type(error).__name__}: {error}")
            raise RemoteError(
                f"The teacher's server {self.url} answers what is no HTTP ({reason}); it must be "
                "a server of teacher.api. Correct teacher.url."
            ) from None
        if response.status_code in _PASSING:
            return None, f"status {response.status_code}: {self.clean(response.text)}"
        if response.status_code in _REFUSED:
            raise ConfigError(self._wrong_token(response.status_code))
        if response.status_code == _BROKEN:
            return response, f"status 500: {self.clean(response.text)}"
        if not response.is_success:
            raise self.refusal(response)
        return response, ""

    def _wrong_token(self, status: int) -> str:
        named = self._settings.token_env
        got = "null" if named is None else f"{named}, whose token is not the server's"
        return (
            f"teacher.token_env is {got}, and the server {self.url} answers {status}; it must "
            "name the environment variable that holds the server's token. Set both."
        )

    def _enter(self) -> int:
        """Wait while somebody probes the server; answers how often it has been back."""
        with self._lock:
            if self._gone is not None:
                raise self._gone
            return self._num_pauses

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise RemoteError(f"The teacher's server {self.url} is not waited for any more.")

    def _pause(self, reason: str, *, since: float, seen: int, delay: float) -> None:
        """Send nothing but probes until the server is back; one thread does, the others wait."""
        with self._lock:
            if self._gone is not None:
                raise self._gone
            if self._num_pauses != seen:
                return
            patience = self._settings.patience_seconds
            _LOG.warning(
                "The teacher's server %s does not answer (%s): the run is paused, for %.0f s at "
                "most, and goes on when it is back.", self.url, reason, patience,
            )  # fmt: skip
            while True:
                left = since + patience - time.monotonic()
                if left <= 0:
                    self._gone = self._stayed_away(reason)
                    raise self._gone
                self._wait(min(delay, left))
                delay = min(2 * delay, _MOST_SECONDS)
                still = self._away()
                if still is None:
                    break
                reason = still
            self._num_pauses += 1
            away = time.monotonic() - since
            _LOG.warning("The teacher's server %s is back after %.0f s.", self.url, away)

    def _away(self) -> str | None:
        """Why the server is not back; None where it is, and is the one it was."""
        response, reason = self._once(lambda: self._client.get("/health"))
        if response is None or not response.is_success:
            return reason
        try:
            self.known()
        except SilentError as error:
            return str(error)
        return None

    def _stayed_away(self, reason: str) -> RemoteError:
        return RemoteError(
            f"The teacher's server {self.url} has not answered for "
            f"{self._settings.patience_seconds:g} s ({reason}); it must be running. Start it, and "
            "go on with --resume; teacher.patience_seconds is how long a run waits."
        )


def _delay(failures: int) -> float:
    """Seconds to wait after so many failures: doubled each time, and spread."""
    most = min(_FIRST_SECONDS * 2**failures, _MOST_SECONDS)
    return most * _JITTER.uniform(0.5, 1.0)


def _anybody() -> None:
    """Any server will do."""


_ADVICE: Mapping[int, str] = {
    400: "See teacher.top_k, with vLLM also its --max-logprobs, and the length of the rows.",
    404: "Check teacher.url and teacher.api.",
    413: "Lower teacher.rows_per_request.",
}
