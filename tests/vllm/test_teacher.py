"""vLLM as a teacher: its log-probabilities are those of transformers, and a run learns from it."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tests.cli.conftest import FAST
from tests.tiny_models import VOCABULARY, byte_tokenizer
from tests.vllm.conftest import Server, student
from tests.vllm.reading import write
from tutelage.core.errors import RemoteError
from tutelage.core.records import Prompt, Rollout
from tutelage.core.targets import TopKTarget
from tutelage.models import save_model
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.doctor import examine
from tutelage.recipes.run import run_recipe
from tutelage.rollouts.engines import Sampling
from tutelage.teachers import LiveTeacher
from tutelage.teachers.cache import AnswerSettings, stored
from tutelage.teachers.remote import Link, RemoteTeacher, RemoteTeacherSettings, VllmApi, Wanted
from tutelage.text import collate

pytestmark = pytest.mark.vllm

TOLERANCE = 5e-5
MOST = 20


@pytest.fixture(autouse=True)
def its_first_weights(vllm_server: Server) -> None:
    """Tests of other files give the one server other weights."""
    engine = vllm_server.engine()
    write(engine, student(), Sampling(max_completion_tokens=1))
    engine.close()


def settings_of(server: Server, **more: Any) -> RemoteTeacherSettings:
    given = {"url": server.url, "api": "vllm", "model": "teacher", "answer": "top_k"}
    return RemoteTeacherSettings.model_validate(
        {**given, "served_name": name_of(server), "patience_seconds": 0.0, **more}
    )


def name_of(server: Server) -> str:
    """What the server calls its model: the folder it was started with."""
    return str(httpx2.get(f"{server.url}/v1/models").json()["data"][0]["id"])


def rows() -> list[Rollout]:
    """Four rows of other lengths, one of them longer than a block of vLLM's cache."""
    made = [
        Rollout(
            prompt=Prompt(student_ids=tuple((7 * at) % 250 for at in range(length))),
            completion_ids=tuple((11 * at + length) % 250 for at in range(9)),
        )
        for length in (1, 5, 40, 150)
    ]
    trained = tuple(at % 2 == 0 for at in range(9))
    return [*made[:3], Rollout(**{**vars(made[3]), "trained": trained})]


@pytest.mark.parametrize("top_k", [1, 8, MOST])
def test_its_likeliest_entries_are_those_of_transformers(vllm_server: Server, top_k: int) -> None:
    settings = settings_of(vllm_server, top_k=top_k)
    link = Link(settings, None)
    api = VllmApi(link, settings.name_there)
    wanted = Wanted(answer="top_k", num_real=VOCABULARY, num_entries=top_k)
    teacher = RemoteTeacher(api, link, settings, wanted, shape=(VOCABULARY, 64))
    batch = collate(rows())
    form = AnswerSettings(answer="top_k", num_entries=top_k, dtype="float32")
    same = stored(LiveTeacher(student(), num_real=VOCABULARY).score(batch), form, key="")
    # Twice: the second time, prompts are in its cache.
    for _ in range(2):
        found = teacher.score(batch)
        assert isinstance(found, TopKTarget)
        assert torch.equal(found.ids, same["ids"].long())
        torch.testing.assert_close(found.logp, same["logp"], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(found.tail_logp, same["tail_logp"], rtol=0, atol=TOLERANCE)
    link.close()


def test_more_than_its_max_logprobs_is_refused_in_its_words(vllm_server: Server) -> None:
    settings = settings_of(vllm_server, top_k=MOST + 1)
    link = Link(settings, None)
    wanted = Wanted(answer="top_k", num_real=VOCABULARY, num_entries=MOST + 1)
    teacher = RemoteTeacher(
        VllmApi(link, settings.name_there), link, settings, wanted, shape=(VOCABULARY, 64)
    )
    with pytest.raises(RemoteError, match=r"greater than max allowed: 20.*teacher\.top_k"):
        teacher.score(collate(rows()))
    link.close()


def recipe_with(server: Server, folder: Path, **more: Any) -> Recipe:
    save_model(student(), byte_tokenizer(), folder / "teacher")
    save_model(student(1), byte_tokenizer(), folder / "student")
    teacher = {
        "kind": "remote",
        "url": server.url,
        "api": "vllm",
        "model": str(folder / "teacher"),
        "served_name": name_of(server),
        "answer": "top_k",
        "top_k": MOST,
        **more,
    }
    given = [f"student={folder / 'student'}", f"output={folder / 'run'}", "baselines={}"]
    return load("tiny", [*FAST, *given, f"teacher={json.dumps(teacher)}"])


def test_a_run_learns_from_it_and_the_doctor_finds_nothing_wrong(
    vllm_server: Server, tmp_path: Path
) -> None:
    recipe = recipe_with(vllm_server, tmp_path)
    found = examine(recipe)
    assert [f.text for f in found if (f.verdict, f.subject) == ("wrong", "server")] == []
    assert "says what its weights say here" in [f for f in found if f.subject == "server"][-1].text
    outcome = run_recipe(recipe)
    rows_of = {row["name"]: row for row in outcome.summary["rows"]}
    assert rows_of["distilled"]["forward_kl"] is None
    assert "teacher" not in rows_of
    assert any("measured without the teacher" in note for note in outcome.summary["notes"])
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    losses = [one["loss"] for line in lines if "loss" in (one := json.loads(line))]
    assert losses[-1] < losses[0]


def test_a_model_of_another_name_is_refused(vllm_server: Server, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="it must serve gpt-17"):
        run_recipe(recipe_with(vllm_server, tmp_path, served_name="gpt-17"))
