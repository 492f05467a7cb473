"""Steps on what the student has just written: counted afterwards, masked by lengths, never nan.

The numbers B4 to B36 are those of the known mistakes of the field.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from tests.training.tiny_runs import (
    gradient_of_first_step,
    objective,
    on_policy,
    rows,
    settings,
    student,
    trainer,
    watched,
    weights,
)
from tutelage.core.errors import NumericsError
from tutelage.core.records import Rollout
from tutelage.core.run_log import read_metrics
from tutelage.objectives import Taid
from tutelage.rollouts import DatasetRollouts, Order, StudentRollouts, Writing
from tutelage.rollouts.engines import Sampling
from tutelage.text import collate
from tutelage.training import Collected, Trainer


def written(num_rows: int = 8) -> list[Rollout]:
    return on_policy("student", student()).take(num_rows)


def run(kind: str = "student", **fields) -> Trainer:
    lm = student()
    return trainer(student=lm, rollouts=on_policy(kind, lm), **fields)


def test_a_longer_prompt_trains_not_one_token_more() -> None:
    # B4: the tokens that have a loss are the completions' own, wherever they begin.
    found = written()
    longer = [
        replace(row, prompt=replace(row.prompt, student_ids=(9, 9, 9, *row.prompt.student_ids)))
        for row in found
    ]
    short, long = collate(found), collate(longer)
    assert short.labels.tolist() == long.labels.tolist()
    assert short.labels.tolist() == [token for row in found for token in row.completion_ids]
    assert int(short.loss_mask.sum()) == sum(len(row.completion_ids) for row in found)


def test_ragged_rollouts_give_the_loss_of_their_rows_one_by_one() -> None:
    # B5: no row loses tokens to the longest prompt of its batch.
    found = written()
    assert len({len(row.prompt.student_ids) for row in found}) > 3
    one = run()
    sizes = [len(row.completion_ids) for row in found]
    singles = [one.loss_on([row]) for row in found]
    expected = sum(loss * size for loss, size in zip(singles, sizes, strict=True)) / sum(sizes)
    assert one.loss_on(found) == pytest.approx(expected, rel=1e-5)


def test_the_end_is_trained_though_it_is_the_pad_token_and_a_cut_row_has_none() -> None:
    # B6 and B7: in these models pad = eos, and token 0 ends a completion like the others do.
    found = written(20)
    ends = set(range(0, 64, 8))
    batch = collate(found)
    for index, row in enumerate(found):
        labels = batch.labels[batch.row_of == index].tolist()
        assert labels == list(row.completion_ids)
        assert (labels[-1] in ends) is not row.truncated
        assert not set(labels[:-1]) & ends
        assert len(labels) == 10 or not row.truncated
    assert len({row.truncated for row in found}) == 2


def test_a_step_of_empty_completions_only_is_zero_and_moves_nothing() -> None:
    # B9: no nan, and a backward pass all the same.
    lm = student()
    source = on_policy("student", lm, skip_empty=True)
    lm.model.generation_config = GenerationConfig(eos_token_id=list(range(64)))
    before = weights(lm)
    found = watched(
        trainer(student=lm, rollouts=source, settings=settings(num_steps=2)),
        lambda r: (r.totals.loss, r.totals.grad_norm, r.totals.num_tokens, r.rollouts),
    )
    for loss, grad_norm, num_tokens, numbers in found:
        assert (loss, grad_norm, num_tokens) == (0.0, 0.0, 0)
        assert numbers["empty_share"] == 1.0
        assert numbers["completion_tokens"] == 1.0
    assert all(torch.equal(weight, before[name]) for name, weight in weights(lm).items())


def test_empty_completions_weigh_nothing_beside_others() -> None:
    found = written(20)
    silent = Rollout(
        prompt=found[0].prompt, completion_ids=(8,), trained=(False,), source="student"
    )
    one = run()
    assert one.loss_on([silent, *found]) == pytest.approx(one.loss_on(found), rel=1e-6)


@pytest.mark.parametrize("kind", ["student", "mixed", "replay"])
def test_a_step_is_divided_by_the_tokens_that_were_written_for_it(kind: str) -> None:
    # B12: the data's completions, which are of other lengths, have no part in it.
    taken: list[list[Rollout]] = []
    one = run(kind, settings=settings(num_steps=4, micro_batch_tokens=40))
    one.hooks = [
        lambda event: taken.append(list(event.rollouts)) if isinstance(event, Collected) else None
    ]
    numbers = watched(one, lambda r: (r.totals.num_tokens, r.rollouts))
    for (num_tokens, log), window in zip(numbers, taken, strict=True):
        trained = [
            len(row.completion_ids) if row.trained is None else sum(row.trained) for row in window
        ]
        assert num_tokens == sum(trained)
        own = [row for row in window if row.source == "student"]
        assert log["written_share"] == len(own) / len(window)
        assert log["truncated_share"] == sum(row.truncated for row in own) / len(own)
        assert log["eos_rate"] == pytest.approx(1 - log["truncated_share"])
        assert log["empty_share"] == sum(row.is_empty for row in own) / len(own)
        lengths = [len(row.completion_ids) for row in own]
        assert log["completion_tokens"] == pytest.approx(sum(lengths) / len(own))
        assert log["generated_tokens_per_second"] > 0 or not log["generated_tokens"]


def test_how_a_written_step_is_cut_changes_neither_gradient_nor_clocks() -> None:
    # B10, B12 and B36 with the rows written on the spot.
    gradients, clocks = [], []
    for size in (16, 48, 4096):
        fields = {"settings": settings(num_steps=3, micro_batch_tokens=size)}
        gradients.append(gradient_of_first_step(run("mixed", **fields)))
        moved = run("mixed", move=Taid(schedule="adaptive", alpha=0.9), **fields)
        clocks.append(watched(moved, lambda r: (r.t, r.rollouts["student_share"])))
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-7)
    for other in clocks[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(clocks[0]))


def test_a_share_moves_once_a_step_whatever_else_is_done_with_the_student() -> None:
    one = run("mixed", settings=settings(num_steps=5, evaluate_every=1))
    one.evaluate = lambda: {"loss": one.loss_on(written(3))}
    shares = watched(one, lambda r: r.rollouts["student_share"])
    assert shares == pytest.approx([0.3 + 0.7 * step / 5 for step in range(5)])


def test_the_student_learns_from_what_it_says_itself() -> None:
    lm = student()
    one = trainer(
        student=lm,
        rollouts=on_policy("student", lm),
        settings=settings(num_steps=25, learning_rate=1e-2),
    )
    losses = watched(one, lambda r: r.totals.loss)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_writing_in_the_first_place_changes_no_mask_of_dropout() -> None:
    # The student writes without dropout and without the generator that dropout draws from.
    lm, other = student(dropout=0.3), student(dropout=0.3)
    source = on_policy("student", lm)
    first = on_policy("student", other).take(8)
    fields = {"settings": settings(num_steps=1), "seed": 4}
    one = watched(trainer(student=lm, rollouts=source, **fields), lambda r: r.totals.loss)
    same = DatasetRollouts(first, shuffle=False)
    assert watched(trainer(student=other, rollouts=same, **fields), lambda r: r.totals.loss) == one


def test_the_log_says_what_was_written(tmp_path: Path) -> None:
    run("mixed", settings=settings(num_steps=2), output=tmp_path).train()
    for line in read_metrics(tmp_path / "metrics.jsonl", phase="train"):
        assert {
            "student_share",
            "written_share",
            "completion_tokens",
            "truncated_share",
            "eos_rate",
            "empty_share",
            "generated_tokens",
            "generated_tokens_per_second",
        } <= set(line)


def test_a_log_of_finished_rows_says_nothing_of_writing(tmp_path: Path) -> None:
    trainer(settings=settings(num_steps=1), output=tmp_path).train()
    line = read_metrics(tmp_path / "metrics.jsonl", phase="train")[0]
    assert not {"written_share", "completion_tokens", "generated_tokens"} & set(line)


def test_a_student_whose_scores_are_nan_is_stopped_at_its_prompt_and_step() -> None:
    lm = student()
    source = on_policy("student", lm)
    with torch.no_grad():
        lm.head.weight[5] = math.nan
    with pytest.raises(NumericsError, match=r"Step 1: The model.s scores for prompt"):
        trainer(student=lm, rollouts=source).train()


def test_a_cross_entropy_of_written_rows_needs_their_ids_and_nothing_of_their_text() -> None:
    # The ids that were sampled are the ids that are scored; nothing is decoded in between.
    lm = student()
    prompts = [row.prompt for row in rows(6)]
    source = StudentRollouts(
        lm, prompts, Writing(sampling=Sampling(max_completion_tokens=4)), Order()
    )
    found = source.take(6)
    one = trainer(student=lm, rollouts=source, teacher=None, objective=objective("cross_entropy"))
    total = sum(sum(row.sampled_logp or ()) for row in found)
    num_tokens = sum(len(row.completion_ids) for row in found)
    # At temperature 1 without limits, what was drawn with is what is scored.
    assert one.loss_on(found) == pytest.approx(-total / num_tokens, rel=1e-4)
