"""A mixture of experts on the command line, from its folder to a saved student with biases."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import FAST, Words
from tests.tiny_moe import NUM_EXPERTS, moe_folder
from tutelage.models import load_model
from tutelage.models.routers import biases_of


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_command_line_trains_and_saves_a_balanced_student(
    tutelage: Words, tmp_path: Path
) -> None:
    moe = moe_folder(tmp_path / "moe")
    balanced = "routing={balance: {kind: reward_bias, balance_rate: 0.1}, probe_every: 2}"
    words = (*FAST, "baselines={}", f"student={moe}", f"output={tmp_path / 'run'}", balanced)
    done = tutelage("train", "tiny", *words)
    assert done.exit_code == 0, done.output
    logged = lines(tmp_path / "run" / "metrics.jsonl")
    train = [line for line in logged if line["phase"] == "train"]
    for line in train:
        assert 0 <= line["max_violation"] <= line["max_violation_worst"] <= NUM_EXPERTS - 1
        assert line["router_bias"] > 0
        assert line["router_entropy"] > 0
    assert [("probed_shift" in line) for line in train] == [False, True, False, True]
    assert all(line["probed_shift"] > 0 for line in train[1::2])
    tables = lines(tmp_path / "run" / "routers.jsonl")
    assert [line["step"] for line in tables] == [1, 2, 3, 4]
    for line in tables:
        assert [sum(row) for row in line["load"]] == pytest.approx([1.0, 1.0], abs=1e-4)
    saved = load_model(str(tmp_path / "run" / "student")).lm
    last = torch.tensor(tables[-1]["bias"])
    torch.testing.assert_close(biases_of(saved), last, atol=1e-5, rtol=0)
    measured = tutelage("eval", str(tmp_path / "run"))
    assert measured.exit_code == 0, measured.output
