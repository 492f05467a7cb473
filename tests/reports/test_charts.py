"""Charts as records: thinning, gaps, axes and bins."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.reports.charts import COLOURS, Band, Chart, Line, draw, save_figures
from tutelage.reports.charts.chart import (
    MOST_POINTS,
    bins,
    dashes,
    pieces,
    rounded_ticks,
    smoothed,
    thinned,
    variant_role,
    x_range,
    y_range,
)
from tutelage.reports.charts.drawing import axis_text, safe_json

NAN = math.nan


def line(*y: float, name: str = "Distilled", role: str = "distilled") -> Line:
    return Line(name=name, role=role, x=[float(x) for x in range(len(y))], y=[float(v) for v in y])


def chart(*lines: Line, **settings: object) -> Chart:
    about = {"key": "k", "title": "Title", "x_label": "step", "y_label": "nats"}
    return Chart(**{**about, **settings}, lines=lines)


def test_thinning_ten_thousand_steps_keeps_ends_spikes_and_gaps() -> None:
    y = [math.sin(x / 500) for x in range(10_000)]
    y[4321], y[6543], y[8000] = 50.0, -50.0, NAN
    thin = thinned(line(*y))
    assert len(thin.x) <= 1.05 * MOST_POINTS
    assert {0.0, 9999.0, 4321.0, 6543.0, 8000.0} <= set(thin.x)
    assert list(thin.x) == sorted(thin.x)
    assert len(pieces(thin)) == 2


@given(st.lists(st.floats(-1e3, 1e3) | st.just(NAN), min_size=1, max_size=300), st.integers(8, 60))
def test_thinning_never_invents_a_point_and_never_loses_an_extreme(
    y: list[float], most: int
) -> None:
    whole = line(*y)
    thin = thinned(whole, most)
    pairs = {(x, repr(value)) for x, value in zip(whole.x, whole.y, strict=True)}
    assert {(x, repr(value)) for x, value in zip(thin.x, thin.y, strict=True)} <= pairs
    finite, kept = ([v for v in values if math.isfinite(v)] for values in (y, thin.y))
    assert (not finite and not kept) or (min(finite), max(finite)) == (min(kept), max(kept))


def test_a_short_line_is_left_as_it_is() -> None:
    assert thinned(line(1, 2, 3)) == line(1, 2, 3)


def test_smoothing_is_the_mean_of_the_last_points_and_skips_nan() -> None:
    found = smoothed(line(1, 3, NAN, 5, 9), width=2)
    assert list(found.y) == [1, 2, 3, 5, 7]
    assert math.isnan(smoothed(line(NAN, 1), width=3).y[0])
    few = smoothed(line(*range(1000)), width=3, most=10)
    assert list(few.x) == [*range(0, 1000, 100), 999]
    assert few.y[-1] == 998


def test_a_nan_cuts_a_line_and_a_point_between_two_gaps_becomes_a_dot() -> None:
    drawing = draw(chart(line(1, 2, NAN, 3, NAN, 4, 5)))
    (stroke,) = drawing.strokes
    assert stroke.path.count("M") == 2
    many = [1.0] * 60 + [NAN, 3.0, NAN] + [1.0] * 60
    (stroke,) = draw(chart(line(*many))).strokes
    assert stroke.dots.count("M") == 1


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_inside(low: float, size: float) -> None:
    ticks = rounded_ticks(low, low + size)
    assert len(ticks) <= 7
    assert all(low - 1e-6 * size <= tick <= low + size * (1 + 1e-6) for tick in ticks)
    assert all(a < b for a, b in pairwise(ticks))


@pytest.mark.parametrize("y", [(0.0,), (5.0, 5.0), (NAN, NAN), (), (-3.0, 1e9), (1e-9, 2e-9)])
@pytest.mark.parametrize("log_y", [False, True])
def test_every_range_can_be_drawn(y: tuple[float, ...], *, log_y: bool, tmp_path) -> None:
    shown = chart(line(*y), log_y=log_y)
    up, across = y_range(shown), x_range(shown)
    assert up.low < up.high
    assert across.low < across.high
    assert "nan" not in draw(shown).strokes[0].path
    assert len(save_figures([shown], tmp_path)) == 2


def test_a_wide_range_gets_a_log_axis_with_round_marks() -> None:
    up = y_range(chart(line(0.1, 10.0, 1e4), log_y=True))
    assert up.log
    assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in up.ticks)
    assert up.share(10.0) == pytest.approx((up.share(1.0) + up.share(100.0)) / 2)


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 50)), max_size=200), st.integers(1, 40))
def test_binning_positions_keeps_the_mean_over_all_tokens(
    rows: list[tuple[float, int]], most: int
) -> None:
    values = [value for value, _ in rows]
    counts = [float(count) for _, count in rows]
    x, y = bins([float(p) for p in range(len(rows))], values, counts, most=most)
    assert len(x) <= most
    assert len(x) == len(y)
    assert list(x) == sorted(x)
    if sum(counts) and most == 1:
        whole = sum(v * c for v, c in zip(values, counts, strict=True)) / sum(counts)
        assert y == [pytest.approx(whole)]


def test_axis_labels_differ_where_ticks_differ_and_percents_say_so() -> None:
    axis = y_range(chart(line(0.501, 0.509)))
    labels = [axis_text(tick, axis) for tick in axis.ticks]
    assert len(set(labels)) == len(labels)
    assert all("%" in axis_text(tick, axis, "percent") for tick in axis.ticks)
    small = y_range(chart(line(0, 3e-6)))
    assert [axis_text(t, small) for t in small.ticks][1] == "1e\u22126"


def test_a_chart_says_in_words_what_it_shows() -> None:
    teacher = Line(name="Teacher", role="teacher", x=[0.0, 9.0], y=[3.1, 3.1], level=True)
    said = draw(chart(line(2, 1, 0.5), teacher)).alternative
    assert said == (
        "Title (nats) by step: Distilled from 2.000 at 0 to 0.500 at 2.000; Teacher 3.100 "
        "throughout."
    )


def test_a_faint_line_has_no_name_and_no_number() -> None:
    drawing = draw(chart(replace(line(1, 2), faint=True), line(1, 1.5)))
    assert [name for name, _, _ in drawing.legend] == ["Distilled"]
    assert drawing.data.count('"name"') == 1


def test_json_in_a_page_cannot_leave_its_script_element() -> None:
    text = safe_json({"</script><!--": ["&amp;\u2028", math.inf, 1.5]})
    assert not set(text) & set("<>&\u2028")
    assert "null" in text
    assert "\\u003c/script" in text


def test_bands_and_hostile_names_reach_the_files(tmp_path) -> None:
    shown = chart(
        line(1, 2, name="$\\frac{$ <b> 日本"),
        line(2, 3, name="_hidden_"),
        bands=(Band(role="distilled", x=[0.0, 1.0], low=[0.5, 1.0], high=[1.5, NAN]),),
        title="$x <i>",
    )
    written = save_figures([shown], tmp_path / "plots")
    assert [path.name for path in written] == ["k.svg", "k.png"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert written[0].read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_every_role_has_colours_that_stand_out_and_its_own_dashes() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for light, dark in COLOURS.values():
        assert 1.05 / (luminance(light) + 0.05) >= 3
        assert (luminance(dark) + 0.05) / (luminance("#181b23") + 0.05) >= 3
    roles = [variant_role(index) for index in range(7)]
    assert len(set(roles)) == 7
    assert len({dashes(role) for role in roles}) == 7
