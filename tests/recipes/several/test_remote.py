"""Runs in which one of several teachers is on a server."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.several.runs import (
    WAYS,
    cached,
    live,
    models_and_rows,
    recipe_of,
    remote,
    several,
    trained,
)
from tests.served import Server, serving
from tutelage.core.errors import CheckpointError
from tutelage.recipes.check import contradictions
from tutelage.recipes.doctor import examine
from tutelage.recipes.run import run_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_and_rows(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Generator[Server]:
    """Serves the teacher called other."""
    with serving(folder / "other", token=None) as running:
        yield running


@pytest.fixture(autouse=True)
def kept_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "kept"))


def test_a_teacher_on_a_server_beside_a_live_one_teaches_the_same(
    folder: Path, server: Server
) -> None:
    for number, how in enumerate(WAYS):
        mixed = several(folder, how, other=remote(folder, server.url))
        told = trained(recipe_of(folder, f"served-{number}", mixed))
        assert told == trained(recipe_of(folder, f"alive-{number}", several(folder, how)))


def test_a_run_goes_on_at_another_address_and_with_no_other_teacher(
    folder: Path, server: Server
) -> None:
    both = several(folder, "by: mixture", other=remote(folder, server.url))
    short = ("training.num_steps=2", "keep_checkpoints=true")
    run_recipe(recipe_of(folder, "run", both, *short))
    (folder / "run" / "measured.json").unlink()
    with serving(folder / "other", token=None) as moved:
        there = remote(folder, moved.url, timeout_seconds=7)
        again = recipe_of(folder, "run", several(folder, "by: mixture", other=there), *short)
        assert run_recipe(again, resume=True).step == 2
    (folder / "run" / "measured.json").unlink()
    swapped = several(folder, "by: mixture", other=live(folder, "other"))
    with pytest.raises(CheckpointError, match=r"teacher\.teachers\.other\.answer is None"):
        run_recipe(recipe_of(folder, "run", swapped, *short), resume=True)


def test_a_student_that_writes_is_read_by_the_server_too(folder: Path, server: Server) -> None:
    extra = ("rollouts.kind=student", "rollouts.max_completion_tokens=4")
    mixed = several(folder, "by: mixture", other=remote(folder, server.url))
    told = trained(recipe_of(folder, "served", mixed, *extra))
    assert told == trained(recipe_of(folder, "alive", several(folder, "by: mixture"), *extra))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"api": "vllm"}, "answers with hidden, from vLLM; it must answer with hidden states"),
        ({"api": "vllm", "answer": "top_k"}, "answers with top_k, from vLLM"),
        ({"answer": "top_k"}, "answers with top_k; it must answer with hidden states"),
        ({"answer": "logits"}, "answers with logits; it must"),
        ({"top_k": 3}, r".top_k is 3, and teacher.teachers.other.answer is hidden"),
        ({"token_env": "NOT_THERE"}, ".token_env is NOT_THERE, which is not set here"),
    ],
)
def test_what_a_server_cannot_be_among_several_is_said_without_asking(
    folder: Path, more: Any, complaint: str
) -> None:
    other = remote(folder, "http://127.0.0.1:9", **more)
    (line,) = contradictions(recipe_of(folder, "run", several(folder, "by: mixture", other=other)))
    assert line.startswith("teacher.teachers.other")
    assert complaint in line


def test_the_doctor_looks_at_caches_and_servers_among_several(folder: Path, server: Server) -> None:
    both = several(folder, "by: row", one=cached(folder, "one"), other=remote(folder, server.url))
    found = examine(recipe_of(folder, "run", both))
    assert [f for f in found if f.verdict == "wrong"] == []
    texts = {f.subject: f.text for f in found}
    assert "its teacher says the same on 3 rows" in texts["cache of one"]
    assert "says what its weights say here (float32) on 3 rows" in texts["server of other"]
    (folder / "cache-one" / "head.safetensors").unlink()
    server.kill()
    wrong = {f.subject: f.text for f in examine(recipe_of(folder, "run", both))
             if f.verdict == "wrong"}  # fmt: skip
    assert "head.safetensors is missing" in wrong["cache of one"]
    assert "does not answer /identity" in wrong["server of other"]
