"""The server's own manners: who is let in, what is refused, and that reading together changes
nothing that matters."""

import json
from concurrent.futures import Future
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save

from tests.served import TOKEN, Server
from tests.teachers.remote.conftest import ENTRIES, REAL, WIDTH, rollouts
from tutelage.core.errors import ConfigError, DataError
from tutelage.models import CausalLM
from tutelage.teachers.remote.wire import (
    Answer,
    AskedRow,
    Wanted,
    decode,
    decode_question,
    encode_question,
    rows_asked,
)
from tutelage.teachers.serving import MOST_BYTES, Worker, refuse_open_door
from tutelage.text import collate

HIDDEN = Wanted(answer="hidden", num_real=REAL)


def rows() -> list[AskedRow]:
    return rows_asked(collate(rollouts()))


def post(server: Server, body: bytes, token: str = TOKEN) -> httpx2.Response:
    return httpx2.post(
        f"{server.url}/score",
        content=body,
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=60,
    )


def done(found: Future[list[Answer]]) -> list[Answer]:
    return found.result(timeout=60)


def test_a_question_is_what_it_was_after_the_wire() -> None:
    wanted = Wanted(answer="top_k", num_real=7, num_entries=3, temperature=0.7)
    found, form = decode_question(encode_question(rows(), wanted))
    assert form == wanted
    for mine, theirs in zip(rows(), found, strict=True):
        assert torch.equal(mine.ids, theirs.ids)
        assert torch.equal(mine.predicts, theirs.predicts)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
def test_others_are_let_in_with_a_token_only(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"--host is {host}, which others can reach"):
        refuse_open_door(host, None)
    refuse_open_door(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_token_but_an_empty_one_is_none(host: str) -> None:
    refuse_open_door(host, None)
    for token in ("", "tab\there", "naïve"):
        with pytest.raises(ConfigError, match="--token is empty or has other"):
            refuse_open_door(host, token)


@pytest.mark.parametrize("path", ["/identity", "/head", "/score"])
def test_whoever_has_no_token_learns_nothing_but_that_it_lives(server: Server, path: str) -> None:
    client = httpx2.Client(base_url=server.url, trust_env=False)
    with client:
        assert client.get("/health").json() == {"status": "ok"}
        for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
            method = "POST" if path == "/score" else "GET"
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()) == (
                401,
                {"error": "The token is missing or wrong."},
            )


def test_the_server_says_whom_it_serves(server: Server) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    told = httpx2.get(f"{server.url}/identity", headers=headers, trust_env=False).json()
    assert (told["model"], told["num_entries"], told["num_words"]) == ("teacher", ENTRIES, REAL)
    assert (told["dtype"], told["width"], told["longest"]) == ("float32", WIDTH, 512)


def question(**changes: Any) -> bytes:
    tensors = {
        "ids": torch.tensor([1, 2, 3], dtype=torch.int32),
        "predicts": torch.tensor([1, 2], dtype=torch.int32),
        "lengths": torch.tensor([[3, 2]], dtype=torch.int32),
    }
    told = {"format": 1, **HIDDEN.model_dump()}
    for name, value in changes.items():
        (tensors if isinstance(value, torch.Tensor) else told)[name] = value
    return save(tensors, {name: json.dumps(value) for name, value in told.items()})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 2}, "format must be 1"),
        ({"answer": "everything"}, "cannot be read"),
        ({"num_real": 0}, "cannot be read"),
        ({"num_real": "many"}, "cannot be read"),
        ({"temperature": 0}, "cannot be read"),
        ({"more": 1}, "cannot be read"),
        ({"num_real": ENTRIES + 1}, f"over up to {ENTRIES}"),
        ({"ids": torch.tensor([[1, 2, 3]])}, "flat"),
        ({"ids": torch.tensor([1, 2, ENTRIES])}, "Row 0 has an id that is not among"),
        ({"ids": torch.tensor([1, -1, 2])}, "Row 0 has an id that is not among"),
        ({"predicts": torch.tensor([1, 3])}, "behind its last"),
        ({"predicts": torch.tensor([-1, 2])}, "before its first"),
        ({"lengths": torch.tensor([[3, 1]])}, "cannot be read"),
        ({"lengths": torch.tensor([3, 2])}, "cannot be read"),
        ({"lengths": torch.zeros(0, 2, dtype=torch.long)}, "cannot be read"),
        ({"ids": torch.ones(600).long(), "lengths": torch.tensor([[600, 2]])}, "600 tokens"),
    ],
)
def test_an_impossible_question_is_refused_in_words(
    server: Server, changes: Any, complaint: str
) -> None:
    answer = post(server, question(**changes))
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]
    assert post(server, question()).status_code == 200


def test_a_body_without_end_is_not_read_to_its_end(server: Server) -> None:
    answer = post(server, bytes(MOST_BYTES + 1))
    assert answer.status_code == 413


def test_rows_read_side_by_side_have_the_same_numbers_up_to_rounding(lm: CausalLM) -> None:
    apart, together = Worker(lm), Worker(lm, batch_tokens=100)
    jobs = [together.submit(rows()[n : n + 2], HIDDEN) for n in range(4)]
    for n, job in enumerate(jobs):
        same = done(apart.submit(rows()[n : n + 2], HIDDEN))
        for mine, theirs in zip(done(job), same, strict=True):
            torch.testing.assert_close(mine["hidden"], theirs["hidden"], rtol=1e-5, atol=1e-5)


def test_each_row_is_read_by_itself_unless_batches_are_asked_for(lm: CausalLM) -> None:
    """Bits that depend on the row alone follow from this; small models would show no others."""
    seen: list[int] = []
    embedding = lm.model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0].numel()))
    lengths = [len(row.ids) for row in rows()]
    done(Worker(lm).submit(rows(), HIDDEN))
    assert seen == lengths
    done(Worker(lm, batch_tokens=1000).submit(rows(), HIDDEN))
    hook.remove()
    assert seen == [*lengths, sum(lengths)]


def test_forms_may_be_mixed_in_one_reading(lm: CausalLM) -> None:
    worker = Worker(lm, batch_tokens=1000)
    forms = [HIDDEN, Wanted(answer="logits", num_real=REAL), Wanted(answer="top_k", num_real=9)]
    found = [done(job)[0] for job in [worker.submit(rows()[:1], form) for form in forms]]
    assert [sorted(one) for one in found] == [["hidden"], ["logits"], ["ids", "logp", "tail_logp"]]
    assert int(found[2]["ids"].long().max()) < 9


def test_a_question_that_fails_is_answered_so_and_the_next_one_served(lm: CausalLM) -> None:
    worker = Worker(lm)
    bytes_no_model_reads = torch.tensor([1, 2], dtype=torch.int8)
    broken = AskedRow(key="", ids=bytes_no_model_reads, predicts=torch.tensor([0]))
    with pytest.raises(RuntimeError, match="indices"):
        done(worker.submit([broken], HIDDEN))
    assert done(worker.submit(rows()[:1], HIDDEN))[0]["hidden"].shape == (6, WIDTH)
    with pytest.raises(DataError, match="0 rows"):
        worker.submit([], HIDDEN)


def test_metadata_that_is_not_json_is_refused() -> None:
    with pytest.raises(DataError, match="no safetensors of ours"):
        decode(save({"ids": torch.zeros(1)}, {"asked": "{"}))
