"""The load of experts over a training, as maps on the page and as files."""

import json
import math
import re
from pathlib import Path

import pytest

from tests.reports.made_up import add_routers, make_run
from tutelage.reports.heat_map import MOST_COLUMNS, MOST_MAPS, SHADES, read_heat_maps, shade
from tutelage.reports.page import write_report


def folder_with(tmp_path: Path, loads: list[list[list[float]]], *, torn: str = "") -> Path:
    lines = [json.dumps({"step": 5 * (at + 1), "load": load}) for at, load in enumerate(loads)]
    (tmp_path / "routers.jsonl").write_text("\n".join(lines) + "\n" + torn, encoding="utf-8")
    return tmp_path


def test_a_map_is_in_fair_shares_with_a_row_an_expert_and_a_column_a_moment(tmp_path: Path) -> None:
    loads = [[[0.5, 0.5, 0.0, 0.0], [0.25] * 4], [[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]]
    first, second = read_heat_maps(folder_with(tmp_path, loads))
    assert first.steps == [5, 10]
    assert first.shares == [[2.0, 1.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert second.shares == [[1.0, 4.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    assert "expert 0 has 4.00" in second.alternative
    assert "3 have nothing" in second.alternative
    assert dict(first.paths)[2] == "M0 0h1v1h-1zM0 1h1v1h-1z"
    assert dict(first.paths)[-SHADES] == "M0 2h1v1h-1zM0 3h1v1h-1z"


@pytest.mark.parametrize(
    ("share", "level"),
    [(0.0, -4), (0.1, -4), (0.25, -4), (0.5, -2), (1.0, 0), (2.0, 2), (4.0, 4), (99.0, 4)],
)
def test_shades_are_even_on_both_sides_of_the_fair_share(share: float, level: int) -> None:
    assert shade(share) == level


def test_a_number_that_is_none_has_no_shade() -> None:
    assert shade(math.nan) == 0


def test_maps_and_columns_are_bounded_and_keep_both_ends(tmp_path: Path) -> None:
    loads = [[[0.5, 0.5]] * 48] * 500
    maps = read_heat_maps(folder_with(tmp_path, loads))
    assert len(maps) == MOST_MAPS
    assert [maps[0].layer, maps[-1].layer] == [0, 47]
    assert len(maps[0].steps) == MOST_COLUMNS
    assert [maps[0].steps[0], maps[0].steps[-1]] == [5, 2500]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert read_heat_maps(tmp_path) == []
    torn = '{"step": 9, "load": [[0.5'
    assert len(read_heat_maps(folder_with(tmp_path, [[[0.5, 0.5]]], torn=torn))[0].steps) == 1
    other = [[[0.5, 0.5]], [[0.2, 0.3, 0.5]], [[1.0, 0.0]]]
    assert read_heat_maps(folder_with(tmp_path, other))[0].steps == [5, 15]
    (tmp_path / "routers.jsonl").write_text('[]\n{"step": 1}\n7\n', encoding="utf-8")
    assert read_heat_maps(tmp_path) == []


def test_a_report_shows_the_maps_and_the_curves_of_the_routers(tmp_path: Path) -> None:
    folder = add_routers(make_run(tmp_path / "run", num_steps=60))
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count('class="heat"') == 3
    for title in ("Routing shift, same rows", "MaxVio", "Dead experts", "Router entropy"):
        assert f"<h3>{title}</h3>" in page
    shades = set(re.findall(r'<path class="l(-?\d)"', page))
    assert {"4", "-4", "0"} <= shades
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert {"expert_load_layer_1.svg", "expert_load_layer_3.png"} <= plots
    assert "probed_shift_by_step.svg" in plots


def test_a_report_without_experts_says_nothing_of_them(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", num_steps=30)).read_text(encoding="utf-8")
    assert "Load of the experts" not in page
