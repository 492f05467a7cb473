"""The second cut, into blocks of rows: how many rows a block has, and that it changes nothing."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.objectives.fused.problems import (
    FEATURES,
    KINDS,
    fused,
    in_dtype,
    make_case,
    name_of,
    objective_of,
)
from tutelage.objectives.fused import driver
from tutelage.objectives.fused.tiles import block_rows
from tutelage.objectives.moved_targets import Taid

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("threads", "num_entries", "rows"),
    [
        (1, 50_304, 6),
        (2, 50_304, 12),
        (1, 151_936, 2),
        (2, 2**20, 2),
        # No more in a block than a common cache holds, but a row for each thread.
        (16, 50_304, 80),
        (64, 151_936, 64),
    ],
)
def test_each_thread_gets_the_same_few_rows(
    monkeypatch: pytest.MonkeyPatch, threads: int, num_entries: int, rows: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert block_rows(num_entries, CPU) == rows


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
@pytest.mark.parametrize("move", [None, Taid()], ids=["still", "taid"])
def test_cutting_into_blocks_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, Any], move: Taid | None
) -> None:
    objective = objective_of(settings)
    case = in_dtype(make_case(FEATURES["softcap"]), torch.float64)
    t = None if move is None else torch.linspace(0, 1, 13)
    answers = []
    for tile, rows in ((13, 13), (7, 3)):
        monkeypatch.setattr(driver, "block_rows", lambda *_, rows=rows: rows)
        answers.append(fused(case, objective, tile_tokens=tile, move=move, t=t))
    (whole_values, whole), (values, cut) = answers
    torch.testing.assert_close(values, whole_values, rtol=1e-10, atol=1e-12)
    for got, wanted in zip(cut, whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
