"""One step with a teacher of another tokenizer: however it is cut or ordered, the same gradient."""

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from typing_extensions import override

from tests.training.crossed.crossed_runs import crossed, rows, teacher
from tests.training.tiny_runs import gradient_of_first_step, settings
from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.targets import Target
from tutelage.teachers import TranslatingTeacher
from tutelage.teachers.teacher import Teacher
from tutelage.text.collate import collate

every_objective = pytest.mark.parametrize("kind", ["aligned_kl", "uld", "dual_space"])
WHOLE: dict[str, Any] = {"num_steps": 1, "rows_per_step": 8, "max_grad_norm": None}


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@every_objective
def test_cutting_a_step_into_micro_batches_changes_no_gradient(kind: str, reduction: str) -> None:
    def gradient(budget: int) -> dict[str, torch.Tensor]:
        chosen = settings(**WHOLE, micro_batch_tokens=budget, reduction=reduction)
        return gradient_of_first_step(crossed(kind, settings=chosen))

    whole = gradient(10**6)
    assert ("bridge.to_teacher.weight" in whole) == (kind == "dual_space")
    assert all(found.any() for name, found in whole.items() if "bridge" in name)
    for budget in (90, 1):
        close(gradient(budget), whole)


@every_objective
def test_the_order_of_rows_changes_no_gradient(kind: str) -> None:
    made = rows()
    chosen = settings(**WHOLE, micro_batch_tokens=10**6)
    wanted = gradient_of_first_step(crossed(kind, data=made, settings=chosen))
    turned = [made[at] for at in (3, 7, 0, 5, 1, 2, 6, 4)]
    close(gradient_of_first_step(crossed(kind, data=turned, settings=chosen)), wanted)


@every_objective
def test_what_follows_the_last_trained_token_changes_no_gradient(kind: str) -> None:
    """Groups that reach beyond it count for nothing; those before it know nothing of it."""
    row = rows()[5]
    number = len(row.completion_ids)
    half = number // 2
    swapped = (*row.completion_ids[: half + 3], *reversed(row.completion_ids[half + 3 :]))
    chosen = settings(num_steps=1, rows_per_step=1, max_grad_norm=None)

    def gradient(ids: tuple[int, ...]) -> dict[str, torch.Tensor]:
        trained = tuple(at < half for at in range(number))
        one = replace(row, completion_ids=ids, trained=trained)
        return gradient_of_first_step(crossed(kind, data=[one], settings=chosen))

    whole = gradient(row.completion_ids)
    assert any(found.any() for found in whole.values())
    close(gradient(swapped), whole)


@every_objective
def test_nothing_of_the_teacher_gets_a_gradient(kind: str) -> None:
    asked = teacher()
    gradient_of_first_step(crossed(kind, teacher=asked, settings=settings(**WHOLE)))
    assert all(weight.grad is None for weight in asked._lm.parameters())
    assert not any(weight.requires_grad for weight in asked._lm.parameters())


def test_the_teacher_has_an_answer_of_its_own_for_each_row_in_any_company() -> None:
    asked, made = teacher(), rows()
    whole = asked.score(collate(made)).teacher.hidden
    alone = [asked.score(collate([row])).teacher.hidden for row in made]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-5, atol=1e-5)


class Counting(Teacher):
    """Notes how many tokens each side reads at once, and of how many rows."""

    def __init__(self, inner: TranslatingTeacher) -> None:
        self.inner = inner
        self.seen: list[tuple[int, int, int]] = []

    @override
    def score(self, batch: TokenBatch) -> Target:
        theirs = self.inner._translator.batch(batch).batch
        assert theirs is not None
        sides = (len(batch.student.input_ids), len(theirs.teacher.input_ids))
        self.seen.append((batch.num_rows, *sides))
        return self.inner.score(batch)

    @override
    def length(self, rollout: Rollout) -> int:
        return self.inner.length(rollout)


@pytest.mark.parametrize("longer", ["student", "teacher"])
def test_a_micro_batch_has_room_for_the_side_that_reads_more_tokens(longer: str) -> None:
    made = rows()
    if longer == "student":
        long = {"student_ids": (7,) * 40, "teacher_ids": (9,)}
        made = [replace(row, prompt=replace(row.prompt, **long)) for row in made]
    budget = 60
    asked = Counting(teacher(by_bytes=longer == "teacher"))
    chosen = settings(**WHOLE, micro_batch_tokens=budget)
    gradient_of_first_step(crossed("uld", teacher=asked, data=made, settings=chosen))
    assert sum(num_rows for num_rows, _, _ in asked.seen) == len(made)
    # The side that is longer is so by far: the budget counted in the other would let more in.
    ours, theirs = (sum(sizes) for sizes in list(zip(*asked.seen, strict=True))[1:])
    assert (ours if longer == "student" else theirs) > 1.3 * min(ours, theirs)
    assert all(num_rows == 1 or max(sides) <= budget for num_rows, *sides in asked.seen)
    # Neighbours that fit together are together.
    lengths = [asked.length(row) for row in made]
    firsts = [0, *accumulate(num_rows for num_rows, _, _ in asked.seen)]
    for begin, end in pairwise(firsts[:-1]):
        assert sum(lengths[begin : end + 1]) > budget
