"""Seeded epochs over finished rows: complete, resumable, and the same whatever the ranks."""

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import CheckpointError, DataError
from tutelage.core.records import Prompt, Rollout
from tutelage.rollouts import DatasetRollouts


def rows(num_rows: int, first: int = 0) -> list[Rollout]:
    return [
        Rollout(prompt=Prompt(student_ids=(1, i)), completion_ids=(i,))
        for i in range(first, first + num_rows)
    ]


def numbers(taken: list[Rollout]) -> list[int]:
    return [row.completion_ids[0] for row in taken]


def test_each_epoch_has_every_row_once_in_its_own_order() -> None:
    source = DatasetRollouts(rows(10), seed=3)
    epochs = [numbers(source.take(10)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert source.epoch == 3
    assert len(source) == 10


def test_an_epoch_that_ends_inside_a_call_loses_no_row() -> None:
    source = DatasetRollouts(rows(10), seed=3)
    counts = Counter(chain.from_iterable(numbers(source.take(4)) for _ in range(5)))
    assert counts == Counter(dict.fromkeys(range(10), 2))


def test_the_seed_decides_the_order_and_no_shuffle_keeps_it() -> None:
    def first(**settings) -> list[int]:
        return numbers(DatasetRollouts(rows(30), **settings).take(30))

    assert first(seed=1) == first(seed=1)
    assert first(seed=1) != first(seed=2)
    assert first(shuffle=False) == list(range(30))


@pytest.mark.parametrize("shuffle", [True, False])
@given(
    num_rows=st.integers(1, 13),
    num_ranks=st.integers(1, 3),
    per_rank=st.integers(1, 4),
    num_calls=st.integers(1, 5),
)
def test_ranks_together_take_what_one_process_would(
    *, shuffle: bool, num_rows: int, num_ranks: int, per_rank: int, num_calls: int
) -> None:
    alone = DatasetRollouts(rows(num_rows), seed=5, shuffle=shuffle)
    together = [
        DatasetRollouts(rows(num_rows), seed=5, shuffle=shuffle, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    for _ in range(num_calls):
        parts = [numbers(source.take(per_rank)) for source in together]
        assert list(chain.from_iterable(parts)) == numbers(alone.take(per_rank * num_ranks))
    assert {str(source.state_dict()) for source in together} == {str(alone.state_dict())}


@given(st.integers(0, 40), st.integers(1, 7))
def test_a_resumed_source_goes_on_where_the_other_stopped(num_before: int, per_call: int) -> None:
    source = DatasetRollouts(rows(10), seed=7)
    source.take(num_before)
    resumed = DatasetRollouts(rows(10), seed=7)
    resumed.load_state_dict(source.state_dict())
    for _ in range(4):
        assert numbers(resumed.take(per_call)) == numbers(source.take(per_call))


def test_a_run_on_two_ranks_may_go_on_on_one() -> None:
    pair = [DatasetRollouts(rows(10), rank=rank, num_ranks=2) for rank in (0, 1)]
    for source in pair:
        source.take(3)
    alone = DatasetRollouts(rows(10))
    alone.load_state_dict(pair[1].state_dict())
    assert numbers(alone.take(4)) == [n for source in pair for n in numbers(source.take(2))]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (DatasetRollouts(rows(10), seed=1), "seed"),
        (DatasetRollouts(rows(10), shuffle=False), "shuffle"),
        (DatasetRollouts(rows(11)), "fingerprint"),
        (DatasetRollouts(rows(10, first=1)), "fingerprint"),
    ],
)
def test_the_place_in_other_data_is_refused(other: DatasetRollouts, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"rollouts\.{name} is .* must be"):
        DatasetRollouts(rows(10)).load_state_dict(other.state_dict())


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="rollouts is empty"):
        DatasetRollouts([])
