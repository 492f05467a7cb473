"""A share of the rows is written, row by row, by a draw that nobody can lose or repeat."""

from itertools import pairwise

import pytest

from tests.rollouts.test_written import ORDER, WRITING, model, prompts
from tutelage.core.errors import CheckpointError, DataError
from tutelage.core.records import Rollout
from tutelage.rollouts import (
    DatasetRollouts,
    MixedRollouts,
    Order,
    ShareClock,
    StudentRollouts,
    TeacherRollouts,
)

DATA = [Rollout(prompt=prompt, completion_ids=(1, 2, 3)) for prompt in prompts(20)]


STUDENT = model()


def mixed(start: float, end: float | None = None, *, order: Order = ORDER) -> MixedRollouts:
    return MixedRollouts(
        StudentRollouts(STUDENT, prompts(20), WRITING, order),
        DatasetRollouts(DATA, seed=order.seed, rank=order.rank, num_ranks=order.num_ranks),
        clock=ShareClock("student_share", start, end),
    )


def sources(rollouts: list[Rollout]) -> list[str]:
    return [row.source for row in rollouts]


def test_a_share_of_nothing_is_the_data_and_a_share_of_all_is_the_student() -> None:
    assert mixed(0.0).take(20) == DatasetRollouts(DATA, seed=ORDER.seed).take(20)
    assert mixed(1.0).take(20) == StudentRollouts(STUDENT, prompts(20), WRITING, ORDER).take(20)


def test_each_row_is_drawn_by_itself_and_keeps_its_place() -> None:
    found = mixed(0.5).take(20)
    plain = DatasetRollouts(DATA, seed=ORDER.seed).take(20)
    assert [row.prompt for row in found] == [row.prompt for row in plain]
    drawn = sources(found)
    assert 4 <= drawn.count("student") <= 16
    # Not the first half or the second: neighbours differ.
    assert sum(a != b for a, b in pairwise(drawn)) > 3
    kept = [row for row in found if row.source == "dataset"]
    assert all(row.completion_ids == (1, 2, 3) and row.sampled_logp is None for row in kept)


def test_over_many_places_the_share_is_the_share() -> None:
    source = mixed(0.5)
    draws = [source._draw(place) for place in range(2000)]
    for share in (0.1, 0.5, 0.9):
        found = sum(draw < share for draw in draws) / len(draws)
        assert found == pytest.approx(share, abs=4.5 * (share * (1 - share) / 2000) ** 0.5)


def test_a_larger_share_only_adds_rows() -> None:
    small, large = (sources(mixed(share).take(20)) for share in (0.3, 0.6))
    pairs = set(zip(small, large, strict=True))
    assert ("student", "dataset") not in pairs
    assert ("dataset", "student") in pairs


def test_all_ranks_agree_on_who_writes_what() -> None:
    ranks = [mixed(0.5, order=Order(seed=3, rank=rank, num_ranks=2)) for rank in range(2)]
    together = [row for _ in range(2) for rank in ranks for row in rank.take(5)]
    alone = mixed(0.5).take(20)
    assert sources(together) == sources(alone)
    assert [row.completion_ids for row in together] == [row.completion_ids for row in alone]


def test_the_clock_moves_the_share_in_a_straight_line_and_is_in_the_checkpoint() -> None:
    first = mixed(0.0, 1.0)
    clock = first.clocks[0]
    assert clock.share == 0
    first.take(5)
    clock.move(done=0.75)
    assert clock.share == 0.75
    again = mixed(0.0, 1.0)
    again.load_state_dict(first.state_dict())
    assert again.clocks[0].share == 0.75
    assert again.take(10) == first.take(10)


def test_a_share_without_an_end_stays() -> None:
    clock = ShareClock("student_share", 0.3)
    clock.move(done=1.0)
    assert clock.share == 0.3


def test_another_share_is_not_gone_on_with() -> None:
    with pytest.raises(CheckpointError, match=r"rollouts\.student_share is 0\.5; it must be 0\.4"):
        mixed(0.5).load_state_dict(mixed(0.4).state_dict())
    with pytest.raises(CheckpointError, match=r"rollouts\.final_student_share"):
        mixed(0.5, 1.0).load_state_dict(mixed(0.5).state_dict())


def test_what_is_mixed_must_be_the_same_prompts_in_the_same_order() -> None:
    student = StudentRollouts(STUDENT, prompts(20), WRITING, ORDER)
    for other in (
        DatasetRollouts(DATA, seed=ORDER.seed + 1),
        DatasetRollouts(DATA[:7], seed=ORDER.seed),
    ):
        with pytest.raises(DataError, match="must be the same prompts in the same order"):
            MixedRollouts(student, other, clock=ShareClock("student_share", 0.5))


def test_the_other_rows_may_be_the_teachers() -> None:
    both = MixedRollouts(
        StudentRollouts(STUDENT, prompts(20), WRITING, ORDER),
        TeacherRollouts(model(1), prompts(20), WRITING, ORDER),
        clock=ShareClock("student_share", 0.5),
    )
    rows = both.take(20)
    assert set(sources(rows)) == {"student", "teacher"}
    assert both.num_generated == sum(len(row.completion_ids) for row in rows)
