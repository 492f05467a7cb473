"""Intervals and differences against tables, definitions and laws."""

import math
from statistics import fmean, stdev

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports.made_up import generator
from tutelage.reports.statistics import (
    Difference,
    Interval,
    difference,
    holm,
    mean_interval,
    t_quantile,
    t_tails,
    verdicts,
)

# Any printed table of Student's t: degrees of freedom, then the 90, 95, 97.5 and 99.5 % points.
TABLE = {
    1.0: (3.078, 6.314, 12.706, 63.657),
    2.0: (1.886, 2.920, 4.303, 9.925),
    3.0: (1.638, 2.353, 3.182, 5.841),
    4.0: (1.533, 2.132, 2.776, 4.604),
    5.0: (1.476, 2.015, 2.571, 4.032),
    10.0: (1.372, 1.812, 2.228, 3.169),
    30.0: (1.310, 1.697, 2.042, 2.750),
    120.0: (1.289, 1.658, 1.980, 2.617),
}
values = st.floats(-100, 100).map(lambda value: round(value, 3))
seeds = st.dictionaries(st.integers(0, 9), values, min_size=2, max_size=8)


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_those_of_the_printed_table(degrees: float) -> None:
    found = [t_quantile(p, degrees) for p in (0.90, 0.95, 0.975, 0.995)]
    assert found == pytest.approx(TABLE[degrees], abs=6e-4)


@given(st.floats(0.01, 40), st.floats(0.5, 500))
def test_tails_are_those_of_an_independent_library(t: float, degrees: float) -> None:
    x = degrees / (degrees + t * t)
    exact = float(mpmath.betainc(degrees / 2, 0.5, 0, x, regularized=True))
    assert t_tails(t, degrees) == pytest.approx(exact, rel=1e-9, abs=1e-300)


@given(st.floats(0.001, 0.999), st.floats(0.7, 300))
def test_the_quantile_undoes_the_tails_and_is_odd(probability: float, degrees: float) -> None:
    t = t_quantile(probability, degrees)
    below = 1 - t_tails(t, degrees) / 2 if t > 0 else t_tails(t, degrees) / 2
    assert below == pytest.approx(probability, abs=1e-9)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-t, rel=1e-6, abs=1e-9)


def test_a_probability_outside_the_open_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="probability"):
        t_quantile(1.0, 3.0)


def test_a_mean_interval_is_its_definition() -> None:
    numbers = [1.0, 1.2, 0.9]
    found = mean_interval(numbers)
    half = 4.302652729911275 * stdev(numbers) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (fmean(numbers), fmean(numbers) - half, fmean(numbers) + half)
    )
    assert found.half_width == pytest.approx(half)


def test_one_value_has_a_mean_and_no_ends() -> None:
    found = mean_interval([2.5])
    assert found == Interval(mean=2.5, low=None, high=None, num_values=1)
    assert found.half_width is None


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    rng = generator(11)
    hits = 0
    for _ in range(2000):
        found = mean_interval([rng.gauss(3, 2) for _ in range(3)])
        hits += found.low <= 3 <= found.high
    assert 0.935 < hits / 2000 < 0.965


def test_shared_seeds_cancel_what_a_seed_does_to_both() -> None:
    first = {0: 1.0, 1: 5.0, 2: 9.0}
    second = {0: 0.8, 1: 4.9, 2: 8.7}
    paired = difference(first, second)
    apart = difference(first, {seed + 10: value for seed, value in second.items()})
    assert paired.paired
    assert not apart.paired
    assert paired.interval.mean == pytest.approx(apart.interval.mean) == pytest.approx(0.2)
    assert paired.interval.half_width < apart.interval.half_width / 10


def test_a_paired_difference_is_the_interval_of_the_gaps() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 4.0, 7: 99.0}, {0: 0.5, 1: 1.7, 2: 3.1, 8: -99.0})
    gaps = mean_interval([0.5, 0.3, 0.9])
    assert (found.interval.mean, found.interval.low, found.interval.high) == pytest.approx(
        (gaps.mean, gaps.low, gaps.high)
    )
    assert found.interval.num_values == 3


def test_welch_is_its_definition_where_no_seed_is_shared() -> None:
    found = difference({0: 27.5, 1: 21.0, 2: 19.0, 3: 23.6}, {4: 27.1, 5: 22.0, 6: 30.8})
    a, b = [27.5, 21.0, 19.0, 23.6], [27.1, 22.0, 30.8]
    parts = (stdev(a) ** 2 / 4, stdev(b) ** 2 / 3)
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    half = t_quantile(0.975, degrees) * math.sqrt(sum(parts))
    assert found.interval.mean == pytest.approx(fmean(a) - fmean(b))
    assert found.interval.half_width == pytest.approx(half)
    assert found.p_value == pytest.approx(
        t_tails((fmean(a) - fmean(b)) / math.sqrt(sum(parts)), degrees)
    )


@given(seeds, seeds)
def test_the_other_way_round_only_the_sign_changes(
    first: dict[int, float], second: dict[int, float]
) -> None:
    there, back = difference(first, second), difference(second, first)
    assert there.interval.mean == pytest.approx(-back.interval.mean, abs=1e-9)
    assert there.p_value == pytest.approx(back.p_value, abs=1e-9)


@given(seeds, seeds)
def test_zero_is_inside_the_interval_just_when_p_is_above_five_percent(
    first: dict[int, float], second: dict[int, float]
) -> None:
    found = difference(first, second)
    if abs(found.p_value - 0.05) > 1e-6:
        assert (found.interval.low <= 0 <= found.interval.high) == (found.p_value > 0.05)


def test_one_seed_on_each_side_says_nothing_for_certain() -> None:
    found = difference({0: 1.0}, {0: 2.0})
    assert found.interval.mean == -1.0
    assert found.p_value is None
    assert verdicts([found]) == ["unknown"]


def test_equal_runs_are_told_from_those_that_merely_do_not_separate() -> None:
    same = difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0 + 1e-9})
    near = difference({0: 1.0, 1: 2.0}, {0: 1.1, 1: 1.8})
    assert verdicts([same, near]) == ["same", "not separate"]


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, corrected, strict=True))
    ranked = sorted(zip(p_values, corrected, strict=True))
    assert [after for _, after in ranked] == sorted(corrected)


def test_a_pair_that_stands_out_alone_may_drown_among_many() -> None:
    def of(p_value: float) -> Difference:
        interval = Interval(mean=1.0, low=0.0, high=2.0, num_values=3)
        return Difference(interval=interval, p_value=p_value, paired=True, same=False)

    assert verdicts([of(0.03)]) == ["separate"]
    assert verdicts([of(0.03), of(0.2), of(0.0001)]) == ["only alone", "not separate", "separate"]
