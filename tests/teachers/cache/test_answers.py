"""Stored answers against the live teacher they come from: exact, or off by what is stated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import tiny_llama
from tutelage.core.errors import DataError
from tutelage.core.records import Prompt, Rollout
from tutelage.core.targets import HiddenTarget, SampledTarget, TopKTarget
from tutelage.models import CausalLM
from tutelage.objectives.plain import plain_logits
from tutelage.teachers import CachedTeacher, LiveTeacher
from tutelage.teachers.cache import (
    AnswerSettings,
    CacheFolder,
    Identity,
    Row,
    save_head,
    stored,
    writer_of,
)
from tutelage.teachers.cache.answers import answer
from tutelage.text import collate, key_of

SHARED = 250
"""Fewer entries than the head has: the rest is padding, as in two models of one family."""


def rollouts(num: int = 9) -> list[Rollout]:
    generator = torch.Generator().manual_seed(3)

    def ids(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(0, SHARED, (size,), generator=generator).tolist())

    return [
        Rollout(prompt=Prompt(student_ids=ids(2, 6), name=f"x:{n}"), completion_ids=ids(1, 9))
        for n in range(num)
    ]


ROWS = rollouts()


def live(dtype: torch.dtype = torch.float32) -> LiveTeacher:
    lm = CausalLM(tiny_llama(1).to(dtype))
    return LiveTeacher(lm, num_real=SHARED, remember_bytes=2**20)


def cached(
    folder: Path, rows: Sequence[Rollout] = ROWS, *, teacher: LiveTeacher, **form: Any
) -> CachedTeacher:
    answers = AnswerSettings(**form)
    folder.mkdir(exist_ok=True)
    head = teacher.score(collate(rows[:1])).head
    Identity(
        code_version="0",
        teacher={"kind": "toy"},
        held_in="float32",
        weights="",
        tokenizer="",
        template="",
        num_real=SHARED,
        answers=answers,
        head=save_head(folder, head),
    ).save(folder)
    writer = writer_of(folder, "training", tokens_per_shard=12)
    for row in rows:
        target, key = teacher.score(collate([row])), key_of(row)
        payload = stored(target, answers, key=key)
        num_tokens = len(row.completion_ids)
        writer.append(Row(key=key, name=row.prompt.name, num_tokens=num_tokens, payload=payload))
    writer.close_shard()
    return CachedTeacher(CacheFolder(folder))


def logp_of(target: HiddenTarget, temperature: float = 1.0) -> torch.Tensor:
    return (plain_logits(target.hidden, target.head) / temperature).log_softmax(-1)


SHUFFLED = [[ROWS[n] for n in some] for some in ((4, 0), (8, 2, 7, 1), (3,), (6, 5))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_in_their_own_dtype_are_the_live_ones_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """In any order and any batch; rows are never matched by their place (pitfall B33)."""
    teacher = live(dtype)
    kept = cached(tmp_path, teacher=teacher, dtype=str(dtype).removeprefix("torch."))
    for rows in SHUFFLED:
        batch = collate(rows)
        got, want = kept.score(batch), teacher.score(batch)
        assert isinstance(got, HiddenTarget)
        assert got.hidden.dtype == dtype
        assert torch.equal(got.hidden, want.hidden)
        assert torch.equal(got.head.weight, want.head.weight)
        assert got.head.num_real == SHARED
        assert torch.equal(got.labels, batch.labels)
        # Nothing of a teacher learns (pitfall B30).
        assert not got.hidden.requires_grad
        assert not got.head.weight.requires_grad


def test_half_precision_is_off_by_its_rounding(tmp_path: Path) -> None:
    teacher = live()
    kept, batch = cached(tmp_path, teacher=teacher, dtype="bfloat16"), collate(ROWS)
    got, want = kept.score(batch).hidden.float(), teacher.score(batch).hidden
    assert ((got - want).abs() <= want.abs() / 2**8).all()
    assert not torch.equal(got, want)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_is_the_top_of_the_shared_entries_and_tells_its_tail(
    tmp_path: Path, temperature: float
) -> None:
    """Padding of the head has no place among them, nor any mass (pitfall B29)."""
    teacher = live()
    form = {"answer": "top_k", "num_entries": 5, "dtype": "float32", "temperature": temperature}
    kept = cached(tmp_path, teacher=teacher, **form)
    for rows in SHUFFLED:
        batch = collate(rows)
        got, logp = kept.score(batch), logp_of(teacher.score(batch), temperature)
        assert isinstance(got, TopKTarget)
        want = logp.topk(5)
        assert torch.equal(got.ids, want.indices)
        assert got.ids.max() < SHARED
        torch.testing.assert_close(got.logp, want.values, rtol=1e-6, atol=1e-6)
        tail = 1 - want.values.double().exp().sum(-1)
        torch.testing.assert_close(got.tail_logp.double().exp(), tail, rtol=1e-4, atol=1e-7)
        assert (got.temperature, got.num_real) == (temperature, SHARED)


def test_top_k_of_a_head_in_two_halves_is_that_of_the_whole() -> None:
    """Local tops of each shard are not the top (pitfall B35): ours is taken of the whole row."""
    teacher = live()
    target = teacher.score(collate(ROWS))
    form = AnswerSettings(answer="top_k", num_entries=6, dtype="float32")
    ids = stored(target, form, key="0" * 32)["ids"].long()
    logp = logp_of(target)
    halves = [logp[:, :125].topk(6), logp[:, 125:].topk(6)]
    values = torch.cat([half.values for half in halves], dim=1)
    both = torch.cat([halves[0].indices, halves[1].indices + 125], dim=1)
    assert torch.equal(ids, both.gather(1, values.topk(6).indices))


def test_kept_entries_in_half_precision_move_the_divergence_by_little(tmp_path: Path) -> None:
    teacher = live()
    kept = cached(tmp_path, teacher=teacher, answer="top_k", num_entries=20)
    got, logp = kept.score(collate(ROWS)), logp_of(teacher.score(collate(ROWS)))
    assert got.logp.dtype == torch.float32
    want = logp.gather(1, got.ids)
    assert ((got.logp - want).abs() <= want.abs() / 2**11 + 1e-6).all()


@pytest.mark.parametrize("proposal", [1.0, 1.25, 0.8])
def test_draws_are_unbiased(proposal: float) -> None:
    """The mean weight of each entry is its probability, within the error that draws have."""
    batch = collate(ROWS[:2])
    target = live().score(batch)
    logp = logp_of(target).double()
    form = AnswerSettings(answer="sampled", num_samples=50, proposal_temperature=proposal)
    rounds, total = 200, torch.zeros_like(logp)
    for number in range(rounds):
        payload = stored(target, form, key=str(number))
        got = answer([payload], form, batch, head=None, num_real=SHARED, rest=None)
        assert isinstance(got, SampledTarget)
        if proposal == 1:
            torch.testing.assert_close(got.weights.sum(1), torch.ones(len(logp)))
        total.scatter_add_(1, got.ids, got.weights.double())
    drawn_by = (logp / proposal).softmax(-1)
    error = ((logp.exp() ** 2 / drawn_by - logp.exp() ** 2) / (rounds * 50)).sqrt()
    often = drawn_by * rounds * 50 > 20
    assert often.sum() > 300
    assert ((total / rounds - logp.exp()).abs() < 5 * error)[often].all()


def test_a_rows_draws_are_its_own_whatever_else_is_cached(tmp_path: Path) -> None:
    teacher = live()
    one = cached(tmp_path / "one", teacher=teacher, answer="sampled")
    other = cached(tmp_path / "two", ROWS[::-2], teacher=teacher, answer="sampled")
    batch = collate([ROWS[2]])
    assert torch.equal(one.score(batch).ids, other.score(batch).ids)
    assert torch.equal(one.score(batch).weights, other.score(batch).weights)
    assert not torch.equal(
        one.score(collate([ROWS[0]])).ids[:1, :3], one.score(collate([ROWS[8]])).ids[:1, :3]
    )


def test_the_entropy_of_draws_is_the_teachers(tmp_path: Path) -> None:
    teacher = live()
    kept = cached(tmp_path, teacher=teacher, answer="sampled", temperature=1.5)
    logp = logp_of(teacher.score(collate(ROWS)), 1.5)
    torch.testing.assert_close(kept.score(collate(ROWS)).entropy, -(logp.exp() * logp).sum(-1))


def test_a_row_with_other_trained_tokens_is_another_row(tmp_path: Path) -> None:
    kept = cached(tmp_path, teacher=live())
    row = ROWS[1]
    size = len(row.completion_ids)
    other = Rollout(
        prompt=row.prompt,
        completion_ids=row.completion_ids,
        trained=(False,) * (size - 1) + (True,),
    )
    with pytest.raises(DataError, match=f"key {key_of(other)} is not in the cache"):
        kept.score(collate([ROWS[0], other]))


def test_a_damaged_or_missing_head_is_named(tmp_path: Path) -> None:
    cached(tmp_path, teacher=live())
    path = tmp_path / "head.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-5] + b"\1" + data[-4:])
    with pytest.raises(DataError, match=r"head\.safetensors is damaged"):
        CachedTeacher(CacheFolder(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"head\.safetensors is missing"):
        CachedTeacher(CacheFolder(tmp_path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", r"manifest\.json is damaged"),
        ('{"format": 7}', r"has format 7; it must be 1"),
        ('{"format": 1, "held_in": "int8"}', r"manifest\.json is damaged \(code_version"),
        ("[]", r"has format None"),
        (None, r"holds no manifest\.json"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=complaint):
        CacheFolder(tmp_path)
