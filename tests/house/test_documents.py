"""What the documents promise runs: Python blocks, links, commands and recipes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.file_rules import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)(?: +(\w+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")


def blocks(language: str) -> list[tuple[str, str]]:
    """(where, code) of every fenced block of a language; blocks marked `norun` are left out."""
    found: list[tuple[str, str]] = []
    for document in DOCUMENTS:
        for number, match in enumerate(FENCE.finditer(document.read_text(encoding="utf-8")), 1):
            if match.group(1) == language and match.group(2) != "norun":
                found.append((f"{document.name}:{number}", match.group(3)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=lambda value: str(value)[:24])
def test_every_python_block_runs(where: str, code: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{where}\n{run.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    targets = LINK.findall(document.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


def test_every_make_target_that_a_document_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(encoding="utf-8"))
    }
    assert named <= known


def test_every_tutelage_word_that_a_document_names_exists() -> None:
    from tutelage.cli.main import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = {
        word
        for document in DOCUMENTS
        for word in re.findall(r"(?:^|`)tutelage ([a-z]+)\b", document.read_text(encoding="utf-8"))
    }
    assert named <= known
