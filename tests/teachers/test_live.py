"""A live teacher: aligned with the batch, frozen, exact when it remembers, loud about nan."""

import dataclasses
import random

import pytest
import torch

from tests.tiny_models import VOCABULARY, tiny_gemma2, tiny_llama
from tutelage.core.errors import NumericsError
from tutelage.core.records import Prompt, Rollout, TokenBatch
from tutelage.models import CausalLM
from tutelage.objectives import from_settings
from tutelage.objectives.fused import fused_loss
from tutelage.teachers import LiveTeacher
from tutelage.text.collate import collate


def rollouts(num_rows: int = 5, *, first: int = 0, own_prompts: bool = False) -> list[Rollout]:
    found: list[Rollout] = []
    for row in range(first, first + num_rows):
        numbers = random.Random(row)  # noqa: S311 - test data

        def ids(least: int, most: int) -> tuple[int, ...]:
            return tuple(numbers.choices(range(VOCABULARY), k=numbers.randint(least, most)))  # noqa: B023 - called at once

        prompt = Prompt(student_ids=ids(1, 7), teacher_ids=ids(1, 9) if own_prompts else None)
        found.append(Rollout(prompt=prompt, completion_ids=ids(1, 8)))
    return found


def plain_logits(lm: CausalLM, rollout: Rollout) -> torch.Tensor:
    """Row by row through the whole model: the logits that predict each completion token."""
    prompt = rollout.prompt.teacher_ids or rollout.prompt.student_ids
    ids = torch.tensor([[*prompt, *rollout.completion_ids]])
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0]
    return logits[len(prompt) - 1 : -1]


def logits_of(teacher: LiveTeacher, batch: TokenBatch) -> torch.Tensor:
    target = teacher.score(batch)
    scores = target.hidden @ target.head.weight.T * target.head.scale
    cap = target.head.softcap
    return scores if cap is None else cap * torch.tanh(scores / cap)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2])
@pytest.mark.parametrize("remember_bytes", [0, 10**6])
@pytest.mark.parametrize("own_prompts", [False, True])
def test_each_answer_is_what_the_teacher_expects_at_that_very_token(
    make, remember_bytes, own_prompts
) -> None:
    lm = CausalLM(make())
    rows = rollouts(own_prompts=own_prompts)
    teacher = LiveTeacher(lm, remember_bytes=remember_bytes)
    expected = torch.cat([plain_logits(lm, row) for row in rows])
    for _ in range(2):
        torch.testing.assert_close(
            logits_of(teacher, collate(rows)), expected, atol=2e-5, rtol=1e-4
        )


def test_a_remembered_row_is_the_row_itself_bit_for_bit_in_any_company() -> None:
    lm = CausalLM(tiny_llama())
    rows = rollouts(8)
    remembering = LiveTeacher(lm, remember_bytes=10**6)
    remembering.score(collate(rows[:3]))
    remembering.score(collate(rows[2:6]))
    mixed = [rows[4], rows[7], rows[0], rows[2], rows[6]]
    forgetful = LiveTeacher(lm, remember_bytes=1)
    assert torch.equal(
        remembering.score(collate(mixed)).hidden, forgetful.score(collate(mixed)).hidden
    )
    assert remembering.num_scored_rows == 8
    assert remembering.num_remembered_rows == 1 + 3
    assert forgetful.num_remembered_rows == 0


def test_remembering_changes_the_loss_by_rounding_alone() -> None:
    student, lm = CausalLM(tiny_llama(seed=1)), CausalLM(tiny_llama())
    batch = collate(rollouts(6))
    hidden = student.hidden(batch.student)[batch.student.predicts]
    weights = torch.full(batch.labels.shape, 1.0)
    remembering = LiveTeacher(lm, remember_bytes=10**6)
    targets = [LiveTeacher(lm).score(batch), remembering.score(batch), remembering.score(batch)]
    at_once, first, again = (
        fused_loss(
            hidden,
            student.head,
            target,
            from_settings({"kind": "forward_kl"}),
            token_weights=weights,
        ).per_token
        for target in targets
    )
    assert torch.equal(first, again)
    torch.testing.assert_close(first, at_once, atol=2e-6, rtol=1e-5)


def test_the_byte_budget_is_kept_and_what_was_kept_stays() -> None:
    lm = CausalLM(tiny_llama())
    rows = rollouts(6)
    sizes = [len(row.completion_ids) * 32 * 4 for row in rows]
    teacher = LiveTeacher(lm, remember_bytes=sum(sizes[:3]))
    for row in [*rows, *rows]:
        teacher.score(collate([row]))
    assert teacher.remembered_bytes == sum(sizes[:3])
    assert teacher.num_remembered_rows == 3
    assert teacher.num_scored_rows == 12 - 3


def test_a_memory_that_is_written_over_from_outside_does_not_change_its_answers() -> None:
    teacher = LiveTeacher(CausalLM(tiny_llama()), remember_bytes=10**6)
    batch = collate(rollouts(1))
    expected = teacher.score(batch).hidden.clone()
    for _ in range(2):
        teacher.score(batch).hidden.zero_()
    assert torch.equal(teacher.score(batch).hidden, expected)


def test_the_same_tokens_trained_elsewhere_are_another_row() -> None:
    teacher = LiveTeacher(CausalLM(tiny_llama()), remember_bytes=10**6)
    row = Rollout(prompt=Prompt(student_ids=(1, 2)), completion_ids=(3, 4, 5))
    whole = teacher.score(collate([row])).hidden
    last = dataclasses.replace(row, trained=(False, False, True))
    assert torch.equal(teacher.score(collate([last])).hidden, whole[2:])
    # Even if a key did not tell them apart, the positions asked about would.
    batch = collate([last])
    same_key = dataclasses.replace(batch, keys=collate([row]).keys)
    assert torch.equal(teacher.score(same_key).hidden, whole[2:])


def test_the_answer_keeps_its_dtype_and_carries_labels_and_the_shared_vocabulary() -> None:
    lm = CausalLM(tiny_llama().bfloat16())
    batch = collate(rollouts())
    teacher = LiveTeacher(lm, num_real=250, remember_bytes=10**6)
    for _ in range(2):
        target = teacher.score(batch)
        assert target.hidden.dtype == torch.bfloat16
        assert target.labels is batch.labels
        assert target.head.num_real == 250
        assert target.head.weight.data_ptr() == lm.model.lm_head.weight.data_ptr()


def test_the_callers_autocast_does_not_reach_the_teacher_and_its_own_does() -> None:
    batch = collate(rollouts())
    lm = CausalLM(tiny_llama())
    expected = LiveTeacher(lm).score(batch).hidden
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LiveTeacher(lm).score(batch).hidden
    assert torch.equal(found, expected)
    assert not torch.equal(LiveTeacher(lm, dtype=torch.bfloat16).score(batch).hidden, expected)


def test_the_teacher_is_frozen_and_evaluates_whatever_others_do_to_its_mode() -> None:
    lm = CausalLM(tiny_llama(attention_dropout=0.5))
    teacher = LiveTeacher(lm)
    batch = collate(rollouts())
    expected = teacher.score(batch).hidden
    assert not any(p.requires_grad for p in lm.parameters())
    lm.train().requires_grad_()
    before = torch.get_rng_state()
    found = teacher.score(batch).hidden
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("remember_bytes", [0, 10**6])
def test_nan_in_the_teacher_names_the_row_and_the_token(remember_bytes: int) -> None:
    model = tiny_llama()
    rows = rollouts(3)
    with torch.no_grad():
        model.model.embed_tokens.weight[rows[2].completion_ids[0]] = torch.nan
    rows[2] = dataclasses.replace(rows[2], completion_ids=(*rows[2].completion_ids, 1))
    for row in rows[:2]:
        assert rows[2].completion_ids[0] not in row.prompt.student_ids + row.completion_ids
    batch = collate(rows)
    message = rf"row 2 of the batch \(key {batch.keys[2]}\), completion token \d+,"
    with pytest.raises(NumericsError, match=message):
        LiveTeacher(CausalLM(model), remember_bytes=remember_bytes).score(batch)


def test_gigabytes_are_not_kept_alive_by_a_small_row() -> None:
    teacher = LiveTeacher(CausalLM(tiny_llama()), remember_bytes=10**6)
    batch = collate(rollouts(4))
    teacher.score(batch)
    rows = teacher._reader.memory._rows.values()
    kept = sum(t.untyped_storage().nbytes() for row in rows for t in row.values())
    assert kept == teacher.remembered_bytes == len(batch.labels) * 32 * 4
