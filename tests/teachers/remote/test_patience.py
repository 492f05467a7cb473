"""Dead, slow and busy servers: asked again, waited for so long, and never by too many at once."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.served import Reply, Server, between, listening
from tests.teachers.remote.conftest import Ask, rollouts
from tutelage.core.errors import RemoteError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import HiddenTarget
from tutelage.text import collate

Twist = Callable[[str, Reply], Reply]


def failing(times: int, reply: Reply) -> Twist:
    """The first answers to /score are these."""
    left = [times]

    def twist(path: str, honest: Reply) -> Reply:
        if path == "/score" and left[0] > 0:
            left[0] -= 1
            return reply
        return honest

    return twist


@pytest.mark.parametrize("status", [None, 429, 500, 502, 503, 504])
def test_a_failure_that_passes_is_asked_again(
    server: Server, ask: Ask, batch: TokenBatch, status: int | None
) -> None:
    with between(server, failing(2, Reply(status, b"busy"))) as proxy:
        teacher = ask(proxy.url, retries=2, max_concurrent=1, rows_per_request=5)
        found = teacher.score(batch)
        assert proxy.asked.count("/score") == 3
    same = ask().score(batch)
    assert torch.equal(found.hidden, same.hidden)


def test_an_error_of_the_model_is_told_after_the_retries_though_the_server_lives(
    server: Server, ask: Ask, batch: TokenBatch
) -> None:
    with between(server, failing(99, Reply(500, b"out of memory"))) as proxy:
        teacher = ask(proxy.url, retries=2, rows_per_request=5, patience_seconds=60)
        with pytest.raises(RemoteError, match=r"500 \(out of memory\)"):
            teacher.score(batch)
        assert proxy.asked.count("/score") == 3


def test_the_circuit_opens_nothing_but_probes_is_sent_and_the_run_goes_on(
    server: Server, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    """Down for the first seven requests, whatever they ask for; then back."""
    down = [7]
    seen: list[str] = []

    def twist(path: str, honest: Reply) -> Reply:
        if started.is_set() and down[0] > 0:
            down[0] -= 1
            seen.append(path)
            return Reply(None, b"")
        return honest

    started = threading.Event()
    with between(server, twist) as proxy, caplog.at_level(logging.WARNING, "tutelage"):
        teacher = ask(
            proxy.url, retries=0, patience_seconds=60, max_concurrent=4, rows_per_request=1
        )
        started.set()
        found = teacher.score(collate(rollouts()))
    # Four were on their way when it went down; one thread probes, the others wait.
    assert seen.count("/score") <= 4
    assert seen[-1] == "/health"
    same = ask().score(collate(rollouts()))
    assert isinstance(found, HiddenTarget)
    assert torch.equal(found.hidden, same.hidden)
    told = [record.getMessage() for record in caplog.records]
    assert sum("the run is paused" in line for line in told) == 1
    assert "is back after" in told[-1]
    assert all(proxy.url in line for line in told)


def test_a_server_that_comes_back_as_another_is_refused(
    server: Server, ask: Ask, batch: TokenBatch
) -> None:
    gone = threading.Event()

    def twist(path: str, honest: Reply) -> Reply:
        if path == "/score":
            gone.set()
            return Reply(503, b"")
        if path == "/identity" and gone.is_set():
            return Reply(200, honest.body.replace(b'"weights":"', b'"weights":"f'), honest.kind)
        return honest

    with between(server, twist) as proxy:
        teacher = ask(proxy.url, retries=0, patience_seconds=60)
        with pytest.raises(RemoteError, match="another model: its weights hash is f"):
            teacher.score(batch)


def test_a_server_that_stays_away_is_named_once_the_patience_is_over(
    server: Server, ask: Ask, batch: TokenBatch
) -> None:
    with between(server, lambda _path, honest: honest) as proxy:
        teacher = ask(proxy.url, patience_seconds=1.5, retries=0)
    with pytest.raises(RemoteError, match=r"has not answered for 1\.5 s \(ConnectError") as caught:
        teacher.score(batch)
    assert proxy.url in str(caught.value)
    assert "--resume" in str(caught.value)
    with pytest.raises(RemoteError, match="has not answered"):
        teacher.score(batch)


def test_a_server_that_is_not_there_at_first_is_told_at_once(ask: Ask) -> None:
    with pytest.raises(RemoteError, match=r"does not answer /identity .*Start it"):
        ask("http://127.0.0.1:9", patience_seconds=1000)


def test_a_slow_answer_is_given_up_and_asked_again(
    server: Server, ask: Ask, batch: TokenBatch
) -> None:
    slow = [2]

    def twist(path: str, honest: Reply) -> Reply:
        if path == "/score" and slow[0] > 0:
            slow[0] -= 1
            time.sleep(3)
        return honest

    with between(server, twist) as proxy:
        teacher = ask(
            proxy.url, timeout_seconds=1.5, retries=3, max_concurrent=1, rows_per_request=5
        )
        found = teacher.score(batch)
        assert proxy.asked.count("/score") >= 3
    same = ask().score(batch)
    assert torch.equal(found.hidden, same.hidden)


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_requests_are_on_their_way_than_allowed(
    server: Server, ask: Ask, most: int
) -> None:
    together = threading.Barrier(most)

    def twist(path: str, honest: Reply) -> Reply:
        if path == "/score":
            # Nobody goes on until all that are allowed have come: so many do come at once.
            together.wait(timeout=60)
        return honest

    rows = [row for row in rollouts()[:3] for _ in range(2)]
    with between(server, twist) as proxy:
        teacher = ask(proxy.url, max_concurrent=most, rows_per_request=1, timeout_seconds=120)
        teacher.score(collate(rows))
        assert proxy.most_at_once == most


def test_what_speaks_no_http_is_named(ask: Ask, tmp_path: Path) -> None:
    with (
        listening(lambda _path, _body, _headers: Reply(301, b"")) as other,
        pytest.raises(RemoteError, match=r"refuses /identity with 301"),
    ):
        ask(other.url)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8077", "ftp://host", "http://", "http://me:secret@host", "http://h:x", "h"]
)
def test_an_address_that_is_none_is_refused_and_a_password_is_not_repeated(
    ask: Ask, url: str
) -> None:
    with pytest.raises(ValueError, match=r"teacher\.url is .* it must be http://") as caught:
        ask(url)
    assert "secret" not in str(caught.value).split("[type=")[0]
