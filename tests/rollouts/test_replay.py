"""A bounded buffer of what was written: who enters, who leaves, who is drawn, what is saved."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.rollouts.test_written import ORDER, WRITING, ids, model, prompts
from tutelage.core.errors import CheckpointError, ConfigError
from tutelage.core.records import Rollout
from tutelage.rollouts import Order, ReplayRollouts, ShareClock, StudentRollouts
from tutelage.training.state_tree import load_tree, save_tree

STUDENT = model()


def replay(
    share: float = 0.5,
    end: float | None = None,
    *,
    num_rows: int = 12,
    train_on: str = "fresh",
    order: Order = ORDER,
) -> ReplayRollouts:
    return ReplayRollouts(
        StudentRollouts(STUDENT, prompts(20), WRITING, order),
        num_rows=num_rows,
        clock=ShareClock("fresh_share", share, end),
        train_on=train_on,
    )


def kept(source: ReplayRollouts) -> list[Rollout]:
    return [rollout for _, rollout in source._buffer]


def test_the_first_rows_are_all_written_for_nothing_is_kept_yet() -> None:
    source = replay(0.01)
    first = source.take(6)
    assert kept(source) == first
    assert first == StudentRollouts(STUDENT, prompts(20), WRITING, ORDER).take(6)
    assert source.num_generated == sum(len(row.completion_ids) for row in first)


def test_later_rows_are_written_now_or_were_kept_before_the_step() -> None:
    source = replay(0.5, num_rows=100)
    before = source.take(6)
    rows = source.take(10)
    fresh = kept(source)[6:]
    assert 1 <= len(fresh) <= 9
    assert [row for row in rows if row in fresh] == fresh
    assert all(row in before for row in rows if row not in fresh)


def test_the_buffer_is_bounded_and_the_oldest_leave() -> None:
    source = replay(1.0, train_on="buffer", num_rows=12)
    written = StudentRollouts(STUDENT, prompts(20), WRITING, ORDER)
    for _ in range(4):
        source.take(5)
    assert source.num_kept == 12
    assert ids(kept(source)) == ids(written.take(20))[8:]


def test_a_step_from_the_buffer_holds_no_row_twice_while_there_are_enough() -> None:
    source = replay(1.0, train_on="buffer", num_rows=12)
    assert sorted(row.prompt.name for row in source.take(5)) == sorted(
        row.prompt.name for row in kept(source)
    )
    source.take(5)
    rows = source.take(5)
    assert len({id(row) for row in rows}) == 5
    assert any(row not in kept(source)[-5:] for row in rows)


def test_a_buffer_smaller_than_a_step_is_drawn_from_in_rounds() -> None:
    rows = replay(1.0, train_on="buffer", num_rows=3).take(7)
    assert sorted(len([1 for other in rows if other is row]) for row in rows)[0] >= 2


def test_a_fresh_share_that_reaches_nothing_writes_nothing_more() -> None:
    source = replay(1.0, 0.0)
    source.take(6)
    source.clocks[0].move(done=1.0)
    before = source.num_generated
    assert all(row in kept(source) for row in source.take(8))
    assert source.num_generated == before


def test_a_source_goes_on_with_its_buffer_through_the_files_of_a_checkpoint(
    tmp_path: Path,
) -> None:
    first = replay(0.5, 0.1)
    for _ in range(4):
        first.take(5)
        first.clocks[0].move(done=0.4)
    save_tree(first.state_dict(), tmp_path / "rank-0")
    again = replay(0.5, 0.1)
    again.load_state_dict(load_tree(tmp_path / "rank-0"))
    assert kept(again) == kept(first)
    assert again.take(9) == first.take(9)
    assert again.state_dict() == first.state_dict()


def test_a_skipped_row_stays_skipped_in_the_buffer() -> None:
    source = replay()
    source.take(4)
    place, row = source._buffer[0]
    source._buffer[0] = (place, replace(row, trained=(False,) * len(row.completion_ids)))
    again = replay()
    again.load_state_dict(source.state_dict())
    assert kept(again) == kept(source)


def test_another_buffer_is_not_gone_on_with() -> None:
    for other in (replay(num_rows=11), replay(train_on="buffer"), replay(0.4), replay(0.5, 0.1)):
        with pytest.raises(CheckpointError, match=r"rollouts\.\w+ is .*it must be"):
            other.load_state_dict(replay().state_dict())


def test_each_rank_keeps_its_part_and_draws_from_it() -> None:
    ranks = [
        replay(0.3, num_rows=8, order=Order(seed=3, rank=rank, num_ranks=2)) for rank in range(2)
    ]
    first = [rank.take(4) for rank in ranks]
    assert [rank.num_kept for rank in ranks] == [4, 4]
    fresh = [row for rank in first for row in rank]
    assert ids(fresh) == ids(StudentRollouts(STUDENT, prompts(20), WRITING, ORDER).take(8))


def test_a_buffer_without_a_place_for_each_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="buffer_rows is 1; it must be at least"):
        replay(num_rows=1, order=Order(num_ranks=2))
