from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_models import tiny_llama
from tutelage.core.errors import DataError
from tutelage.core.records import Prompt, Rollout, View
from tutelage.models import CausalLM
from tutelage.text import collate, cut, num_tokens

EOS = 257
ids = st.lists(st.integers(0, 259), min_size=1, max_size=6).map(tuple)


Parts = tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...], int]
# Records are made in the tests: checking their types draws random numbers, which a strategy
# must not do.
parts = st.tuples(ids, st.none() | ids, ids, st.integers(0, 2**7 - 1))


def made(many: list[Parts]) -> list[Rollout]:
    return [
        Rollout(
            prompt=Prompt(student_ids=student, teacher_ids=teacher),
            completion_ids=completion,
            trained=None
            if mask >= 2**6
            else tuple(bool(mask >> at & 1) for at in range(len(completion))),
        )
        for student, teacher, completion, mask in many
    ]


def rollout(
    prompt: tuple[int, ...], completion: tuple[int, ...], teacher: tuple[int, ...] | None = None
) -> Rollout:
    return Rollout(
        prompt=Prompt(student_ids=prompt, teacher_ids=teacher), completion_ids=completion
    )


def row_tokens(view: View, row: int) -> list[int]:
    return view.input_ids[view.row_starts[row] : view.row_starts[row + 1]].tolist()


def test_two_rows_become_these_very_tensors() -> None:
    batch = collate([rollout((1, 2, 3), (4, EOS)), rollout((5,), (6, 7, EOS))])
    view = batch.student
    assert view.input_ids.tolist() == [1, 2, 3, 4, EOS, 5, 6, 7, EOS]
    assert view.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert view.row_starts.tolist() == [0, 5, 9]
    assert view.predicts.tolist() == [2, 3, 5, 6, 7]
    assert batch.labels.tolist() == [4, EOS, 6, 7, EOS]
    assert batch.row_of.tolist() == [0, 0, 1, 1, 1]
    assert batch.offset_in_row.tolist() == [0, 1, 0, 1, 2]
    assert batch.loss_mask.tolist() == [True] * 5
    assert batch.teacher is batch.student


@given(st.lists(parts, min_size=1, max_size=5))
def test_the_position_before_each_label_predicts_it_in_both_views(many: list[Parts]) -> None:
    batch = collate(made(many))
    for view in (batch.student, batch.teacher):
        assert torch.equal(view.input_ids[view.predicts + 1], batch.labels)
        starts = view.row_starts[batch.row_of]
        assert torch.equal(view.position_ids[view.predicts], view.predicts - starts)
        assert (view.predicts + 1 < view.row_starts[batch.row_of + 1]).all()


@given(st.lists(parts, min_size=1, max_size=5))
def test_each_view_has_its_own_prompt_and_the_very_same_completion(many: list[Parts]) -> None:
    rows = made(many)
    batch = collate(rows)
    for at, row in enumerate(rows):
        own = row.prompt.teacher_ids or row.prompt.student_ids
        assert row_tokens(batch.student, at) == [*row.prompt.student_ids, *row.completion_ids]
        assert row_tokens(batch.teacher, at) == [*own, *row.completion_ids]


@given(st.lists(parts, min_size=1, max_size=5))
def test_a_row_is_the_same_in_any_company(many: list[Parts]) -> None:
    rows = made(many)
    together = collate(rows)
    for at, row in enumerate(rows):
        alone, mine = collate([row]), together.row_of == at
        assert torch.equal(alone.labels, together.labels[mine])
        assert torch.equal(alone.offset_in_row, together.offset_in_row[mine])
        assert alone.keys == together.keys[at : at + 1]
        starts = together.student.row_starts[at]
        assert torch.equal(alone.student.predicts, together.student.predicts[mine] - starts)


def test_an_eos_is_trained_wherever_the_completion_has_one() -> None:
    batch = collate([rollout((EOS, 1), (2, EOS, 3, EOS))])
    assert batch.labels.tolist() == [2, EOS, 3, EOS]
    assert batch.student.predicts.tolist() == [1, 2, 3, 4]


def test_untrained_tokens_are_read_and_not_scored() -> None:
    row = Rollout(
        prompt=Prompt(student_ids=(1,)),
        completion_ids=(2, 3, 4, 5),
        trained=(True, False, False, True),
    )
    batch = collate([row])
    assert batch.student.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.labels.tolist() == [2, 5]
    assert batch.student.predicts.tolist() == [0, 3]
    assert batch.offset_in_row.tolist() == [0, 3]


def test_a_batch_with_nothing_to_train_is_empty_and_not_an_error() -> None:
    row = Rollout(prompt=Prompt(student_ids=(1,)), completion_ids=(2,), trained=(False,))
    batch = collate([row])
    assert batch.labels.shape == batch.student.predicts.shape == (0,)
    assert batch.num_rows == 1


def test_keys_tell_apart_whatever_changes_an_answer() -> None:
    base = rollout((1, 2), (3, 4))
    others = [
        rollout((1,), (2, 3, 4)),
        rollout((1, 2), (3, 5)),
        rollout((1, 2), (3, 4), teacher=(1, 2, 9)),
        Rollout(prompt=base.prompt, completion_ids=(3, 4), trained=(True, False)),
    ]
    keys = [collate([row]).keys[0] for row in (base, *others)]
    assert len(set(keys)) == len(keys)
    same = rollout((1, 2), (3, 4), teacher=(1, 2))
    assert collate([same]).keys[0] == keys[0]


def test_the_gradient_reaches_the_outputs_that_predict_the_completion_and_no_other() -> None:
    lm = CausalLM(tiny_llama())
    batch = collate([rollout((1, 2, 3), (4, 5, 6, EOS))])
    hidden = lm.hidden(batch.student).detach().requires_grad_()
    logp = (hidden[batch.student.predicts] @ lm.head.weight.T).log_softmax(-1)
    logp.gather(1, batch.labels[:, None]).sum().backward()
    assert hidden.grad.abs().sum(1).nonzero().flatten().tolist() == [2, 3, 4, 5]


@given(st.lists(parts, max_size=9), st.integers(1, 30))
def test_cutting_keeps_every_row_in_order_and_the_budget(many: list[Parts], budget: int) -> None:
    rows = made(many)
    batches = cut(rows, max_tokens=budget)
    assert [row for batch in batches for row in batch] == rows
    for batch in batches:
        assert len(batch) == 1 or sum(map(num_tokens, batch)) <= budget
    for first, second in pairwise(batches):
        assert sum(map(num_tokens, first)) + num_tokens(second[0]) > budget


def test_a_prompt_without_tokens_is_refused_by_name() -> None:
    row = Rollout(prompt=Prompt(student_ids=(), name="data.jsonl line 3"), completion_ids=(1,))
    with pytest.raises(DataError, match=r"data\.jsonl line 3 is a prompt without tokens; it must"):
        collate([row])


def drawn(prompt: tuple[int, ...], completion: tuple[int, ...], *logp: float) -> Rollout:
    return replace(rollout(prompt, completion), sampled_logp=logp)


def test_what_a_token_was_drawn_with_stays_beside_it() -> None:
    first = replace(drawn((1, 2), (3, 4, 5), -0.1, -0.2, -0.3), trained=(True, False, True))
    batch = collate([first, rollout((6,), (7,)), drawn((8,), (9, EOS), -0.4, -0.5)])
    assert batch.sampled_logp is not None
    assert batch.labels.tolist() == [3, 5, 7, 9, EOS]
    expected = torch.tensor([-0.1, -0.3, torch.nan, -0.4, -0.5])
    torch.testing.assert_close(batch.sampled_logp, expected, equal_nan=True)


def test_a_batch_that_nobody_drew_says_nothing_about_how_it_was_drawn() -> None:
    assert collate([rollout((1, 2), (3, EOS))]).sampled_logp is None


def test_log_probabilities_that_do_not_belong_to_the_completion_are_refused() -> None:
    with pytest.raises(DataError, match="has 1 sampled log-probabilities; it must have 2"):
        collate([drawn((1,), (2, EOS), -0.1)])
