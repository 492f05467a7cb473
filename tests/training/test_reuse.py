"""How a batch of rollouts serves several steps: parts, picks, order, and what is logged of them."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.training.policy_runs import (
    GROUP,
    choices,
    dense,
    judge,
    mixture,
    reward_of,
    rewarded,
    routers_of,
    written,
)
from tests.training.test_policy_steps import logp_of
from tests.training.tiny_runs import objective, teacher, trainer, watched
from tutelage.core.errors import ConfigError
from tutelage.core.records import Rollout
from tutelage.objectives.policies import Grpo, Gspo, PrGrpo
from tutelage.teachers.teacher import Teacher
from tutelage.training import Collected, Groups, Trainer
from tutelage.training.policy import OldTokens
from tutelage.training.reuse import Lesson, Supply, parts_of, picks_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen_by_steps(run: Trainer) -> list[list[Rollout]]:
    """The rows of every step, as the loop gets them."""
    found: list[list[Rollout]] = []
    original = Supply.collect

    def collect(self):
        window = original(self)
        found.append(window.rollouts)
        return window

    Supply.collect = collect
    try:
        run.train()
    finally:
        Supply.collect = original
    return found


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 6])
def test_parts_hold_every_row_once_and_whole_units_in_their_order(
    num_parts: int, unit: int
) -> None:
    parts = parts_of(24, num_parts=num_parts, unit=unit, generator=generator())
    assert sorted(at for part in parts for at in part) == list(range(24))
    assert {len(part) for part in parts} == {24 // num_parts}
    for part in parts:
        assert part == sorted(part)
        for first in part[::unit]:
            assert first % unit == 0
    if num_parts == 1:
        assert parts == [list(range(24))]


def test_the_order_of_the_parts_follows_from_the_seed() -> None:
    def some(seed: int) -> list[list[int]]:
        return parts_of(24, num_parts=6, unit=4, generator=generator(seed))

    assert some(0) == some(0)
    assert some(0) != some(1)


def test_one_completion_of_each_prompt_is_picked_by_lot_or_for_its_reward_or_all_are() -> None:
    rows = written(dense(), 16)

    def picked(distill: Any, seed: int = 0) -> list[bool]:
        return picks_of(rows, group_size=GROUP, distill=distill, generator=generator(seed))

    assert picked("all") == [True] * 16
    best = picked("best")
    for first in range(0, 16, GROUP):
        group, chosen = rows[first : first + GROUP], best[first : first + GROUP]
        assert sum(chosen) == 1
        assert group[chosen.index(True)].reward == max(row.reward or 0 for row in group)
        assert sum(picked("random")[first : first + GROUP]) == 1
    assert picked("random") == picked("random")
    draws = torch.tensor([picked("random", seed) for seed in range(200)]).float().mean(0)
    assert (draws - 1 / GROUP).abs().max() < 0.12


def test_of_equal_rewards_the_first_is_best() -> None:
    rows = [replace(row, reward=1.0) for row in written(dense(), 8)]
    found = picks_of(rows, group_size=4, distill="best", generator=generator())
    assert found == [True, False, False, False] * 2


@pytest.mark.parametrize("cut_by", ["groups", "rows"])
def test_every_row_of_a_batch_is_trained_once_an_epoch(cut_by: str) -> None:
    fields = {
        "num_steps": 12,
        "rows_per_step": 4,
        "updates_per_batch": 3,
        "epochs_per_batch": 2,
        "cut_batch_by": cut_by,
    }
    batches: list[list[Rollout]] = []
    run = rewarded(settings=choices(**fields))
    run.hooks = [lambda e: batches.append(list(e.rollouts)) if isinstance(e, Collected) else None]
    steps = seen_by_steps(run)
    assert [len(batch) for batch in batches] == [12, 12]
    assert [len(step) for step in steps] == [4] * 12
    orders = []
    for number, batch in enumerate(batches):
        ids = [id(row) for row in batch]
        for epoch in range(2):
            first = number * 6 + epoch * 3
            order = [ids.index(id(row)) for step in steps[first : first + 3] for row in step]
            assert sorted(order) == list(range(12))
            orders.append(order)
            if cut_by == "groups":
                assert all(b == a + 1 for a, b in pairwise(order) if b % GROUP)
    # Another order in each epoch and each batch.
    assert len({tuple(order) for order in orders}) == 4


def test_advantages_are_those_of_the_whole_group_whatever_part_a_row_falls_into() -> None:
    run = rewarded(
        settings=choices(num_steps=4, rows_per_step=2, updates_per_batch=4, cut_batch_by="rows")
    )
    batches: list[list[Rollout]] = []
    run.hooks = [lambda e: batches.append(list(e.rollouts)) if isinstance(e, Collected) else None]
    steps = seen_by_steps(run)
    expected = {id(row): row.advantage for row in judge(batches[0])}
    by_content = {
        (row.prompt.student_ids, row.completion_ids): advantage
        for row, advantage in zip(batches[0], expected.values(), strict=True)
    }
    for step in steps:
        for row in step:
            assert row.advantage == by_content[row.prompt.student_ids, row.completion_ids]
    assert any(len({row.prompt.student_ids for row in step}) == 2 for step in steps)


def test_one_batch_for_each_step_is_the_run_that_was_there_before() -> None:
    def losses(**fields: Any) -> list[float]:
        run = replace(rewarded(settings=choices(num_steps=3)), policy=None, **fields)
        return watched(run, lambda r: r.totals.loss)

    assert losses() == losses(groups=Groups())


def test_distillation_without_rewards_may_reuse_its_batches_too() -> None:
    run = trainer(settings=choices(num_steps=4, rows_per_step=4, updates_per_batch=2))
    steps = seen_by_steps(run)
    plain = trainer(settings=choices(num_steps=2, rows_per_step=8))
    together = seen_by_steps(plain)
    for number, batch in enumerate(together):
        parts = steps[2 * number] + steps[2 * number + 1]
        names = sorted(row.prompt.name for row in parts)
        assert names == sorted(row.prompt.name for row in batch)


def test_the_learning_rate_moves_with_every_step_and_rewards_are_logged_once_a_batch() -> None:
    run = rewarded(settings=choices(num_steps=4, updates_per_batch=2, schedule="linear"))
    found = watched(run, lambda r: (r.learning_rate, r.rollouts))
    rates = [rate for rate, _ in found]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 4
    assert ["reward" in numbers for _, numbers in found] == [True, False, True, False]
    assert [numbers["batch_step"] for _, numbers in found] == [1, 2, 1, 2]


def test_clocks_that_the_trainer_moves_are_moved_after_every_step() -> None:
    class Counted:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def move(self, *, loss: float, step: int) -> None:
            self.steps.append(step)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    clock = Counted()
    run = rewarded(settings=choices(num_steps=4, updates_per_batch=2), clocks={"counted": clock})
    run.train()
    assert clock.steps == [0, 1, 2, 3]


def test_the_teacher_is_asked_about_the_picked_rows_alone() -> None:
    for distill, num_rows in (("random", 4), ("best", 4), ("all", 16)):
        other = teacher()
        run = rewarded(
            policy=Grpo(distill=distill),
            teach=objective(),
            teacher=other,
            settings=choices(num_steps=2, rows_per_step=8, updates_per_batch=1),
        )
        run.train()
        assert other.num_scored_rows == num_rows


def test_the_best_row_is_the_one_that_is_distilled() -> None:
    asked: list[tuple[int, ...]] = []
    inner = teacher()

    class Watching(Teacher):
        def score(self, batch):
            starts = batch.row_of.unique()
            asked.extend(tuple(batch.labels[batch.row_of == row].tolist()) for row in starts)
            return inner.score(batch)

    run = rewarded(
        policy=Gspo(distill="best"),
        teach=objective(),
        teacher=Watching(),
        settings=choices(num_steps=1, rows_per_step=8),
    )
    batches: list[list[Rollout]] = []
    run.hooks = [lambda e: batches.append(list(e.rollouts)) if isinstance(e, Collected) else None]
    run.train()
    for first in (0, GROUP):
        group = batches[0][first : first + GROUP]
        best = max(group, key=reward_of)
        assert best.completion_ids in asked
    assert len(asked) == 2


def test_a_lesson_comes_back_from_its_plain_values_as_it_was() -> None:
    lm = mixture()
    rows = written(lm)
    old = OldTokens(
        logp=torch.randn(4, dtype=torch.float64),
        probabilities=(torch.rand(4, 3), torch.rand(4, 3)),
        chosen=(torch.tensor([[0, 1]] * 4), torch.tensor([[2, 1]] * 4)),
    )
    lesson = Lesson(rollout=rows[0], picked=False, old=old)
    again = Lesson.from_state(lesson.state())
    assert again.rollout == replace(rows[0], prompt=replace(rows[0].prompt, row={}))
    assert again.picked is False
    assert again.old is not None
    assert torch.equal(again.old.logp, old.logp)
    assert all(map(torch.equal, again.old.probabilities, old.probabilities))
    assert all(map(torch.equal, again.old.chosen, old.chosen))


def test_a_step_after_the_student_was_put_back_has_no_shift_and_a_ratio_of_one() -> None:
    # The replay of an unchanged student: its routers say again what they said.
    lm = mixture()
    run = rewarded(
        lm,
        policy=PrGrpo(suppression=1.0),
        watch_routers=routers_of(lm),
        settings=choices(num_steps=4, rows_per_step=4, updates_per_batch=4, micro_batch_tokens=48,
                         learning_rate=1e-30),
    )  # fmt: skip
    found = watched(run, lambda r: dict(r.totals.measures))
    for numbers in found:
        assert numbers["routing_shift"] == 0
        assert numbers["ratio_max"] == 1
        assert numbers["approx_kl"] == 0


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="all must divide evenly"):
        rewarded(settings=choices(rows_per_step=6)).train()
    with pytest.raises(ConfigError, match="all must divide evenly"):
        rewarded(settings=choices(rows_per_step=2, updates_per_batch=6)).train()


def test_the_old_student_is_read_without_dropout_and_draws_no_number() -> None:
    lm = dense(attention_dropout=0.5)
    remembered: list[Lesson] = []
    original = Supply._remember

    def remember(self, read):
        before = torch.get_rng_state()
        original(self, read)
        assert torch.equal(torch.get_rng_state(), before)
        remembered.extend(self._lessons)

    Supply._remember = remember
    try:
        rewarded(lm, settings=choices(num_steps=1, updates_per_batch=2)).train()
    finally:
        Supply._remember = original
    with torch.no_grad():
        expected = logp_of(dense(), [lesson.rollout for lesson in remembered])
    for lesson, logp in zip(remembered, expected, strict=True):
        assert lesson.old is not None
        torch.testing.assert_close(lesson.old.logp, logp.float(), rtol=1e-4, atol=1e-5)
