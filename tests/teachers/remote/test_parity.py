"""Live, cached and remote: the same numbers for the same rows, bit for bit where it can be."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.served import Reply, Server, between
from tests.teachers.remote.conftest import ENTRIES, REAL, WIDTH, Ask, rollouts
from tutelage.core.records import TokenBatch
from tutelage.core.targets import HiddenTarget, LogitsTarget, Target, TopKTarget
from tutelage.models import CausalLM
from tutelage.objectives.divergences import ForwardKL, ReverseKL
from tutelage.objectives.fused import FusedOptions
from tutelage.objectives.plain import plain_logits, plain_per_token
from tutelage.teachers import LiveTeacher
from tutelage.teachers.cache import AnswerSettings, stored
from tutelage.text import collate


def honest(_path: str, reply: Reply) -> Reply:
    return reply


def live(lm: CausalLM, batch: TokenBatch) -> HiddenTarget:
    return LiveTeacher(lm, num_real=REAL, remember_bytes=2**20).score(batch)


def test_hidden_states_and_head_are_the_live_teachers_to_the_bit(
    ask: Ask, lm: CausalLM, batch: TokenBatch
) -> None:
    found, same = ask().score(batch), live(lm, batch)
    assert isinstance(found, HiddenTarget)
    assert torch.equal(found.hidden, same.hidden)
    assert torch.equal(found.head.weight, same.head.weight)
    assert (found.head.num_real, found.head.scale) == (REAL, 1.0)
    assert torch.equal(found.labels, batch.labels)
    assert not found.hidden.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_k", [1, 7, 1000])
def test_the_likeliest_entries_are_those_that_a_cache_holds(
    ask: Ask, lm: CausalLM, batch: TokenBatch, top_k: int, temperature: float
) -> None:
    found = ask(answer="top_k", top_k=top_k, temperature=temperature).score(batch)
    settings = AnswerSettings(
        answer="top_k", num_entries=top_k, temperature=temperature, dtype="float32"
    )
    same = stored(live(lm, batch), settings, key="")
    assert isinstance(found, TopKTarget)
    assert torch.equal(found.ids, same["ids"].long())
    torch.testing.assert_close(found.logp, same["logp"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.tail_logp, same["tail_logp"], rtol=1e-4, atol=1e-5)
    assert (found.temperature, found.num_real) == (temperature, REAL)
    assert found.ids.shape == (len(batch.labels), min(top_k, REAL))


def test_logits_are_of_every_entry_and_say_which_are_real(
    ask: Ask, lm: CausalLM, batch: TokenBatch
) -> None:
    found, same = ask(answer="logits").score(batch), live(lm, batch)
    assert isinstance(found, LogitsTarget)
    assert found.logits.shape == (len(batch.labels), ENTRIES)
    assert found.num_real == REAL
    logits = plain_logits(same.hidden, lm.head)
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", [ForwardKL(), ReverseKL()])
@pytest.mark.parametrize("form", [{}, {"answer": "logits"}, {"answer": "top_k", "top_k": REAL}])
@pytest.mark.parametrize("entries", [REAL, ENTRIES, ENTRIES + 12])
def test_every_form_gives_the_live_loss_whatever_the_heads_are_padded_to(
    ask: Ask, lm: CausalLM, batch: TokenBatch, objective: Any, form: Any, entries: int
) -> None:
    """Padding behind the shared entries has no part in it, on either side (pitfalls B29, B30)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(batch.labels), 16, generator=generator)
    weight = torch.randn(entries, 16, generator=generator)
    head = type(lm.head)(weight=weight, num_real=REAL)

    def loss(target: Target) -> torch.Tensor:
        return plain_per_token(hidden, head, target, objective, FusedOptions())

    found = loss(ask(**form).score(batch))
    torch.testing.assert_close(found, loss(live(lm, batch)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("form", [{}, {"answer": "top_k"}, {"answer": "logits"}])
def test_a_rows_bits_depend_on_nothing_but_the_row(ask: Ask, form: Any) -> None:
    """However rows are packed into batches and requests, and in whatever order they come."""
    rows = rollouts()[:4]
    together = ask(rows_per_request=4, **form).score(collate(rows))
    alone = [ask(rows_per_request=1, **form).score(collate([row])) for row in reversed(rows)]
    for name in ("hidden", "logits", "ids", "logp", "tail_logp"):
        if hasattr(together, name):
            parts = [getattr(one, name) for one in reversed(alone)]
            assert torch.equal(getattr(together, name), torch.cat(parts))


def test_what_was_answered_is_not_asked_again(ask: Ask, server: Server) -> None:
    with between(server, honest) as proxy:
        teacher = ask(proxy.url)
        first = teacher.score(collate(rollouts()))
        num_asked = len(proxy.asked)
        again = teacher.score(collate(rollouts()[::-1]))
        assert len(proxy.asked) == num_asked
        assert torch.equal(again.hidden[-6:], first.hidden[:6])
        forgetful = ask(proxy.url, remember_megabytes=0)
        num_asked = len(proxy.asked)
        for _ in range(2):
            forgetful.score(collate(rollouts()))
        assert proxy.asked[num_asked:].count("/score") == 4


def test_a_remembered_row_keeps_no_response_alive(ask: Ask) -> None:
    teacher = ask(rows_per_request=5)
    teacher.score(collate(rollouts()))
    rows = teacher._memory._rows.values()
    kept = sum(t.untyped_storage().nbytes() for row in rows for t in row.values())
    assert kept == teacher._memory.num_bytes == 26 * WIDTH * 4


def test_the_head_is_fetched_once_and_again_where_it_is_damaged(
    ask: Ask, server: Server, tmp_path: Path, batch: TokenBatch, lm: CausalLM
) -> None:
    with between(server, honest) as proxy:
        ask(proxy.url)
        ask(proxy.url)
        assert proxy.asked.count("/head") == 1
        (kept,) = (tmp_path / "cache" / "heads").iterdir()
        kept.write_bytes(kept.read_bytes()[:-1] + b"x")
        found = ask(proxy.url).score(batch)
        assert proxy.asked.count("/head") == 2
    assert isinstance(found, HiddenTarget)
    assert torch.equal(found.head.weight, lm.head.weight)


@pytest.mark.parametrize("answer", ["hidden", "top_k", "logits"])
def test_a_batch_with_nothing_trained_has_an_empty_answer(ask: Ask, answer: str) -> None:
    found = ask(answer=answer).score(collate(rollouts()[-1:]))
    whole = {"hidden": "hidden", "top_k": "logp", "logits": "logits"}[answer]
    assert len(getattr(found, whole)) == 0


def test_asking_moves_no_random_generator(
    ask: Ask, batch: TokenBatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    ask(answer="top_k").score(batch)
    assert torch.equal(torch.get_rng_state(), before)
