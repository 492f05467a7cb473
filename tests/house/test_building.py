"""The building: sizes, rooms, the words we use, and the doors big libraries come in by."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.file_rules import ROOT, complaints_about, tracked_files

PACKAGE = ROOT / "src" / "tutelage"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({path.parent for path in SOURCES})
MOST_LINES = 400
MOST_FILES_IN_A_ROOM = 11
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_names(path: Path) -> set[str]:
    """Every name this file defines: functions, classes, arguments, attributes, variables."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                pass
    return names


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_file_has_at_most_400_lines_and_a_telling_name(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert path.stem not in VAGUE_NAMES


@pytest.mark.parametrize("room", ROOMS, ids=short)
def test_a_room_is_small_and_says_what_it_is_for(room: Path) -> None:
    front = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    purpose = ast.get_docstring(front)
    assert purpose, f"{short(room)}/__init__.py must say in one sentence what the room is for"
    assert "TODO" not in purpose
    files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES_IN_A_ROOM


# Each word the glossary refuses as a name, with the word it prefers.
REFUSED_NAMES = {
    "policy_model": "student",
    "actor": "student",
    "ref_model": "teacher",
    "criterion": "objective",
    "loss_fn": "objective",
    "kd_loss": "the divergence's own name",
    "soft_labels": "target",
    "trajectory": "rollout",
    "log_probs": "logp",
    "logprobs": "logp",
    "lprobs": "logp",
    "lmbda": "student share, or the setting's own meaning",
}


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_names_follow_the_glossary(path: Path) -> None:
    found = {name: REFUSED_NAMES[name] for name in code_names(path) if name in REFUSED_NAMES}
    assert not found, f"{short(path)} uses {found}"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_no_file_postpones_its_annotations_or_hides_a_stub(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "from __future__ import annotations" not in text
    assert "NotImplementedError" not in text
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


DOORS = {
    "accelerate": {"training/ranks.py"},
    # Asked by name, in a process of their own: rewards/sandbox/scorer_server.py.
    "k_means_constrained": {"students/clustering/constrained.py"},
    "math_verify": set(),
    "peft": {"models/adapters.py"},
    "reasoning_gym": set(),
    "trl": set(),
    "vllm": set(),
}


@pytest.mark.parametrize("library", DOORS)
def test_a_large_library_comes_in_by_its_door(library: str) -> None:
    pattern = re.compile(rf"^\s*(?:import {library}\b|from {library}\b)", re.MULTILINE)
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    assert users <= DOORS[library]


def test_only_one_file_makes_the_mean_and_only_one_shifts() -> None:
    shifting = re.compile(r"\[[^\]]*(?:\.\.\.,|:,)\s*:-1\s*(?:,[^\]]*)?\]")
    shifters = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if shifting.search(path.read_text(encoding="utf-8"))
    }
    assert shifters <= {"text/collate.py"}


def test_every_file_is_small_and_ends_with_one_newline() -> None:
    found = [line for path in tracked_files() for line in complaints_about(path)]
    assert not found, "\n".join(found)


def test_the_floors_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    verdict = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
