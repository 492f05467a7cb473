"""A served teacher for a whole file, and the very same one in this process."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.served import TOKEN, Server, serving
from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.core.records import Prompt, Rollout, TokenBatch
from tutelage.models import CausalLM, save_model
from tutelage.teachers.remote import (
    Expected,
    Link,
    RemoteTeacher,
    RemoteTeacherSettings,
    TutelageApi,
    Wanted,
)
from tutelage.text import collate, tokenizer_hash

ENTRIES, REAL, WIDTH = 268, 260, 32
"""The served head is padded by eight rows."""
Ask = Callable[..., RemoteTeacher]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return CausalLM(tiny_llama(3, vocab_size=ENTRIES))


@pytest.fixture(scope="module")
def folder(lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "teacher"
    save_model(lm, byte_tokenizer(), path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Generator[Server]:
    with serving(folder, "--served-name", "teacher") as running:
        yield running


@pytest.fixture
def ask(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Ask]:
    """A teacher on the server, or on what stands before it."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    links: list[Link] = []

    def make(
        url: str | None = None, *, token: str | None = TOKEN, num_real: int = REAL, **more: Any
    ) -> RemoteTeacher:
        brisk = {"retries": 1, "patience_seconds": 0.0, "timeout_seconds": 20.0}
        settings = RemoteTeacherSettings.model_validate(
            {"url": url or server.url, "model": "teacher", **brisk, **more}
        )
        wanted = Wanted(
            answer=settings.answer,
            num_real=num_real,
            num_entries=settings.top_k,
            temperature=settings.temperature,
        )
        expected = Expected(
            name=settings.name_there,
            tokenizer=tokenizer_hash(byte_tokenizer()),
            num_entries=ENTRIES,
            width=WIDTH,
        )
        links.append(Link(settings, token))
        api = TutelageApi(links[-1], expected)
        return RemoteTeacher(api, links[-1], settings, wanted, shape=(ENTRIES, WIDTH))

    yield make
    for link in links:
        link.close()


def rollouts() -> list[Rollout]:
    """Five rows: of their own prompts, half trained, and one with nothing trained."""
    rows = [
        Rollout(
            prompt=Prompt(student_ids=tuple(range(65, 70 + n)), name=f"row {n}"),
            completion_ids=tuple(range(97, 103 + 2 * n)),
        )
        for n in range(3)
    ]
    own = Prompt(student_ids=(80, 81), teacher_ids=(1, 2, 3, 4, 80, 81), name="own")
    rows.append(Rollout(prompt=own, completion_ids=(90, 91, 92), trained=(True, False, True)))
    nothing = Prompt(student_ids=(70, 71), name="nothing")
    rows.append(Rollout(prompt=nothing, completion_ids=(90, 91), trained=(False, False)))
    return rows


@pytest.fixture
def batch() -> TokenBatch:
    return collate(rollouts())
