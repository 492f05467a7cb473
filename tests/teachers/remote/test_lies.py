"""A server that answers wrongly, in each way that can be told: an error with its name and row."""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from tests.served import Reply, Server, between
from tests.teachers.remote.conftest import ENTRIES, REAL, WIDTH, Ask
from tutelage.core.errors import ConfigError, RemoteError, TutelageError
from tutelage.core.records import TokenBatch
from tutelage.teachers.remote.wire import decode

Change = Callable[[dict[str, torch.Tensor], dict[str, str]], None]


def lying(change: Change) -> Callable[[str, Reply], Reply]:
    """Every answer to /score with its tensors or metadata changed."""

    def twist(path: str, reply: Reply) -> Reply:
        if path != "/score":
            return reply
        tensors = load(reply.body)
        told = {name: json.dumps(value) for name, value in decode(reply.body)[1].items()}
        change(tensors, told)
        return Reply(reply.status, save(tensors, told), reply.kind)

    return twist


def another(**changes: Any) -> Callable[[str, Reply], Reply]:
    """The identity of another model."""

    def twist(path: str, reply: Reply) -> Reply:
        if path != "/identity":
            return reply
        tree = json.loads(reply.body)
        return Reply(200, json.dumps({**tree, **changes}).encode(), reply.kind)

    return twist


def cut(name: str) -> Change:
    return lambda tensors, _: tensors.update({name: tensors[name][:-1]})


def narrow(name: str) -> Change:
    return lambda tensors, _: tensors.update({name: tensors[name][:, :-1].contiguous()})


def put(name: str, value: float, at: Any = (2, 0)) -> Change:
    def change(tensors: dict[str, torch.Tensor], _told: dict[str, str]) -> None:
        tensors[name][at] = value

    return change


def shift(name: str, by: float) -> Change:
    return lambda tensors, _: tensors.update({name: tensors[name] + by})


def turn(name: str) -> Change:
    return lambda tensors, _: tensors.update({name: tensors[name].flip(1).contiguous()})


def drop(name: str) -> Change:
    return lambda tensors, _: tensors.update({name: tensors.pop(name)[:0]})


def say(name: str, value: str) -> Change:
    return lambda _, told: told.update({name: json.dumps(value)})


def complaint_of(proxy_url: str, ask: Ask, batch: TokenBatch, **form: Any) -> str:
    with pytest.raises(TutelageError) as caught:
        ask(proxy_url, **form).score(batch)
    message = str(caught.value)
    assert proxy_url in message
    assert "sesame" not in message
    return message


@pytest.mark.parametrize(
    ("form", "change", "complaint"),
    [
        ("hidden", cut("hidden"), r"rows of hidden; it must be"),
        ("hidden", narrow("hidden"), rf"as hidden; it must be \[\d+, {WIDTH}\]"),
        ("hidden", put("hidden", torch.nan), "nan or inf at its trained token 2"),
        ("hidden", put("hidden", -torch.inf), "nan or inf at its trained token 2"),
        ("hidden", say("weights", "0" * 32), "with weights 0000"),
        ("hidden", say("asked", "0" * 32), "another question"),
        ("logits", narrow("logits"), rf"as logits; it must be \[\d+, {ENTRIES}\]"),
        ("logits", put("logits", torch.nan), "nan or inf at its trained token 2"),
        ("top_k", cut("logp"), "rows of logp; it must be"),
        ("top_k", narrow("logp"), r"19\] log-probabilities and"),
        ("top_k", narrow("ids"), r"19\] ids"),
        ("top_k", put("ids", REAL), f"with id {REAL}; ids must be below {REAL}"),
        ("top_k", put("logp", torch.nan), "with nan; log-probabilities must be numbers"),
        ("top_k", put("logp", 0.4), "with a log-probability of 0.4; it must be 0 or below"),
        ("top_k", shift("logp", -0.1), "add up to 0."),
        ("top_k", shift("logp", 0.01), "add up to 1.0"),
        ("top_k", put("tail_logp", torch.nan, 2), "with nan"),
        ("top_k", turn("logp"), "in no order"),
    ],
)
def test_each_lie_is_an_error_with_the_servers_name_and_the_row(
    server: Server, ask: Ask, batch: TokenBatch, form: str, change: Change, complaint: str
) -> None:
    with between(server, lying(change)) as proxy:
        message = complaint_of(proxy.url, ask, batch, answer=form)
    assert re.search(complaint, message), message
    assert batch.keys[0] in message


def test_one_id_twice_is_a_lie(server: Server, ask: Ask, batch: TokenBatch) -> None:
    def twice(tensors: dict[str, torch.Tensor], _told: dict[str, str]) -> None:
        ids = tensors["ids"].int()
        ids[1, 1] = ids[1, 0]
        tensors["ids"] = ids.to(torch.uint16)

    with between(server, lying(twice)) as proxy:
        assert "one id twice" in complaint_of(proxy.url, ask, batch, answer="top_k")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": "gpt-17"}, "its model is gpt-17; it must be teacher"),
        ({"tokenizer": "0" * 32}, "its tokenizer hash is 0000"),
        ({"num_entries": 999}, f"its vocabulary size is 999; it must be {ENTRIES}"),
        ({"width": 64}, f"its width is 64; it must be {WIDTH}"),
        ({"format": 7}, "in format 7; it must be 1"),
        ({"dtype": "int3"}, "/identity in no known way"),
    ],
)
def test_another_model_is_refused_before_anything_is_asked(
    server: Server, ask: Ask, batch: TokenBatch, changes: Any, complaint: str
) -> None:
    with between(server, another(**changes)) as proxy:
        assert complaint in complaint_of(proxy.url, ask, batch)
        assert set(proxy.asked) == {"/identity"}


def test_a_head_with_another_checksum_is_refused(
    server: Server, ask: Ask, batch: TokenBatch
) -> None:
    def swap(path: str, reply: Reply) -> Reply:
        return Reply(200, reply.body[:-4] + b"oops") if path == "/head" else reply

    with between(server, swap) as proxy:
        assert "with a head of SHA-256" in complaint_of(proxy.url, ask, batch)


@pytest.mark.parametrize("body", [b"no head", save({"other": torch.ones(1)})])
def test_a_head_that_is_none_is_the_servers_fault_and_no_caches(
    server: Server, ask: Ask, batch: TokenBatch, body: bytes
) -> None:
    """Its checksum is right."""

    def swap(path: str, reply: Reply) -> Reply:
        if path == "/identity":
            tree = json.loads(reply.body)
            head = {**tree["head"], "sha256": hashlib.sha256(body).hexdigest()}
            return Reply(200, json.dumps({**tree, "head": head}).encode(), reply.kind)
        return Reply(200, body) if path == "/head" else reply

    with between(server, swap) as proxy:
        message = complaint_of(proxy.url, ask, batch)
    assert "with a head that cannot be read; it must be safetensors" in message
    assert "cache" not in message


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"\x80\x04K\x01."])
def test_a_body_that_is_no_safetensors_is_not_read(
    server: Server, ask: Ask, batch: TokenBatch, body: bytes
) -> None:
    """The last of them is a pickle."""

    def swap(path: str, reply: Reply) -> Reply:
        return Reply(200, body) if path == "/score" else reply

    with between(server, swap) as proxy:
        assert "what cannot be read" in complaint_of(proxy.url, ask, batch)


@pytest.mark.parametrize(("status", "advice"), [(404, "teacher.api"), (413, "rows_per_request")])
def test_a_refusal_is_an_error_in_the_servers_words_without_the_token(
    server: Server, ask: Ask, batch: TokenBatch, status: int, advice: str
) -> None:
    def refuse(path: str, reply: Reply) -> Reply:
        words = b"Bearer open-sesame is not\nenough"
        return Reply(status, words, "text/plain") if path == "/score" else reply

    with between(server, refuse) as proxy:
        message = complaint_of(proxy.url, ask, batch)
        assert proxy.asked.count("/score") == 2
    assert f"{status} (Bearer *** is not enough)" in message
    assert advice in message


def test_a_row_that_the_model_cannot_read_is_the_servers_to_refuse(
    ask: Ask, batch: TokenBatch
) -> None:
    ids = batch.teacher.input_ids.clone()
    ids[3] = ENTRIES
    beyond = type(batch.teacher)(**{**vars(batch.teacher), "input_ids": ids})
    with pytest.raises(RemoteError, match=r"400 .*Row 0 has an id that is not among the 268"):
        ask().score(type(batch)(**{**vars(batch), "teacher": beyond}))


@pytest.mark.parametrize("token", [None, "open-sesam", "open-sesame!"])
def test_a_wrong_token_is_an_error_that_does_not_show_it(ask: Ask, token: str | None) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.token_env is null, and .* answers 401") as it:
        ask(token=token)
    assert "sesam" not in str(it.value)
