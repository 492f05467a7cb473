"""How numbers are written."""

import math

import pytest

from tutelage.reports.measures import NOTHING, duration, measure, percent, plain, short_count, words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.823, "0.823"),
        (1.8971, "1.897"),
        (20.661, "20.66"),
        (123.456, "123.5"),
        (12345.6, "12,346"),
        (0.0123, "0.0123"),
        (0.00034, "3.4e\u22124"),
        (-0.5, "\u22120.500"),
        (3e8, "3e8"),
        (0.0, "0"),
        (math.nan, NOTHING),
        (math.inf, NOTHING),
        (None, NOTHING),
    ],
)
def test_a_number_keeps_the_digits_that_compare(value: float | None, text: str) -> None:
    assert plain(value) == text


def test_units_stay_with_their_numbers() -> None:
    assert percent(0.5634) == "56.3\u00a0%"
    assert short_count(134_515_008.0) == "134.5\u00a0M"
    assert short_count(1184.0) == "1,184"
    assert short_count(307_200.0) == "307.2\u00a0k"
    assert duration(271.4) == "4\u00a0min 31\u00a0s"
    assert duration(7300.0) == "2\u00a0h 1\u00a0min"
    assert duration(0.5) == "0.5\u00a0s"


@pytest.mark.parametrize("show", [percent, short_count, duration, measure("perplexity").show])
def test_what_is_no_number_is_a_dash(show) -> None:
    assert show(None) == show(math.nan) == NOTHING


def test_a_number_nobody_described_goes_under_its_own_name() -> None:
    assert measure("rouge_l").label == "Rouge l"
    assert measure("rouge_l").better == "neither"
    assert words("my_Run") == "my_Run"
    assert words("cross_entropy") == "Cross-entropy"
    assert words("skew_reverse_kl") == "Skew reverse KL"
