"""Upcycled students in whole runs: with any objective, from any start, stopped at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.cli.conftest import FAST
from tests.recipes.test_interrupted import ITSELF, ControlC, weights
from tutelage.core.errors import ConfigError
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load, to_yaml
from tutelage.recipes.outline import outline_of
from tutelage.recipes.run import run_recipe
from tutelage.recipes.tree.reading import parse

EXPERTS = "student={kind: upcycled, experts: 4, active: 2}"


def upcycled(folder: Path, *overrides: str) -> Recipe:
    return load("tiny", [*FAST, EXPERTS, "baselines={}", f"output={folder}", *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("objective={kind: reverse_kl}", "student.split={kind: co_activation}"),
        ("objective={kind: cross_entropy}", "student.router={kind: fitted}"),
        ("move={kind: taid}", "student.split={kind: drop_copies}", "student.active=1"),
        ("training.precision=bf16",),
        ("rollouts={kind: student, data: 'preset:tiny.jsonl', max_completion_tokens: 8}",),
    ],
    ids=str,
)
def test_an_upcycled_student_trains_with_anything_and_is_saved_as_it_is(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    outcome = run_recipe(upcycled(tmp_path / "run", *overrides))
    rows = {row["name"]: row for row in outcome.summary["rows"]}
    assert set(rows) == {"before", "distilled", "teacher"}
    assert all(row["forward_kl"] < 50 for row in rows.values())
    assert rows["distilled"]["forward_kl"] != rows["before"]["forward_kl"]
    plain = AutoModelForCausalLM.from_pretrained(outcome.student)
    assert plain.config.model_type == "mixtral"


def test_all_experts_with_equal_gates_begin_as_the_teacher(tmp_path: Path) -> None:
    whole = ("student.active=4", "student.router={kind: zeros}")
    outcome = run_recipe(upcycled(tmp_path / "run", *whole))
    before = next(row for row in outcome.summary["rows"] if row["name"] == "before")
    assert before["forward_kl"] < 1e-6
    assert before["top1_agreement"] == 1


def test_a_frozen_router_stays_and_the_experts_move(tmp_path: Path) -> None:
    first, last = (
        run_recipe(upcycled(tmp_path / name, "student.freeze=['*.gate.weight']", steps))
        for name, steps in (("one", "training.num_steps=1"), ("more", "training.num_steps=6"))
    )
    weights_of = [
        AutoModelForCausalLM.from_pretrained(run.student).state_dict() for run in (first, last)
    ]
    for name, weight in weights_of[0].items():
        assert torch.equal(weight, weights_of[1][name]) == name.endswith("gate.weight"), name


def test_the_outline_counts_what_a_token_uses(tmp_path: Path) -> None:
    recipe = upcycled(tmp_path)
    lines = dict(outline_of(recipe).lines())
    # 4 layers; a router of 4 x 32; experts of 16 neurons with 3 x 32 numbers each.
    assert "of 25,088 in feed-forward parts, a token uses 12,800" in lines["student"]
    assert "a token uses" not in lines["teacher"]
    assert parse(to_yaml(recipe), "text")["student"]["split"]["kind"] == "clustered"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["student.active=5"], r"student\.active is 5; it must be from 1 to student\.experts, 4"),
        (["student.experts=5"], r"student\.experts is 5, which does not divide"),
        (["student.split={kind: clusterd}"], r"student\.split\.kind is 'clusterd'"),
        (["student.split.mergefrom=3"], r"Did you mean|student\.split\.kind is missing"),
        (["student.experts=1"], r"student\.experts is 1; it must be 2 or more"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_before_a_weight_is_loaded(
    tmp_path: Path, overrides: list[str], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        outline_of(upcycled(tmp_path, *overrides))


def test_a_student_with_routers_from_its_teacher_trains_and_needs_that_teacher(
    tmp_path: Path,
) -> None:
    experts = run_recipe(upcycled(tmp_path / "first", "teacher.width=48")).student
    student = f"student={{kind: rerouted, model: {experts}, match: hungarian}}"
    recipe = load("tiny", [*FAST, student, "baselines={}", f"output={tmp_path / 'second'}"])
    outcome = run_recipe(recipe)
    assert AutoModelForCausalLM.from_pretrained(outcome.student).config.hidden_size == 48
    alone = [*FAST, student, "baselines={}", "objective=cross_entropy", "teacher=null"]
    with pytest.raises(ConfigError, match=r"teacher is missing, and a rerouted student is made"):
        outline_of(load("tiny", alone))


def test_a_student_of_its_own_words_must_name_what_it_is_made_from(tmp_path: Path) -> None:
    alone = load("tiny", [*FAST, EXPERTS, "teacher=null", "objective=cross_entropy"])
    assert any("student.model must name a model" in line for line in contradictions(alone))
    itself = load("tiny", [*FAST, EXPERTS, "teacher={kind: self, context: none}", "baselines={}"])
    assert any("student.model is null" in line for line in contradictions(itself))


def test_ctrl_c_and_resume_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    split = "student.split={kind: co_activation}"
    whole = run_recipe(upcycled(tmp_path / "whole", split))
    stopped = run_recipe(upcycled(tmp_path / "broken", split), narrator=ControlC(ITSELF, at=2))
    assert stopped.interrupted
    ended = run_recipe(upcycled(tmp_path / "broken", split), resume=True)
    assert weights(ended.folder) == weights(whole.folder)


@pytest.mark.slow
def test_kill_and_resume_end_with_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("tutelage"))
    settings = [*FAST, EXPERTS, "baselines={}", "training.num_steps=60", "training.save_every=5"]

    def command(name: str, *more: str) -> list[str]:
        return [program, "train", "tiny", *settings, f"output={name}", *more]

    subprocess.run(command("whole"), cwd=tmp_path, check=True, capture_output=True)
    process = subprocess.Popen(
        command("broken"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    metrics = tmp_path / "broken" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 12:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    run = subprocess.run(
        command("broken", "--resume"), cwd=tmp_path, check=True, capture_output=True
    )
    assert run.returncode == 0
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps[-1] == 60
