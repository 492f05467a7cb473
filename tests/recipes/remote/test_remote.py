"""Whole runs from a served teacher: equal to a live one, through kills on either side."""

import json
import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest
from typing_extensions import override

from tests.cli.conftest import FAST
from tests.recipes.killing import Killer
from tests.served import TOKEN, Server, between, serving
from tests.tiny_models import VOCABULARY, byte_tokenizer, tiny_llama
from tutelage.core.errors import CheckpointError, ConfigError, RemoteError
from tutelage.models import CausalLM, save_model
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load, to_yaml
from tutelage.recipes.doctor import Finding, examine
from tutelage.recipes.narrator import Advance, Narrator
from tutelage.recipes.outline import outline_of
from tutelage.recipes.run import evaluate_folder, run_recipe

VARIABLE = "TUTELAGE_TEST_TOKEN"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of one family, with heads padded by 8 and by 12."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, padding) in enumerate({"teacher": 8, "student": 12, "other": 8}.items()):
        lm = CausalLM(tiny_llama(seed, vocab_size=VOCABULARY + padding))
        save_model(lm, byte_tokenizer(), folder / name)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Generator[Server]:
    with serving(models / "teacher") as running:
        yield running


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "kept"))


def tiny(models: Path, folder: Path, *overrides: str) -> Recipe:
    given = [f"student={models / 'student'}", f"output={folder}", "baselines={}"]
    return load("tiny", [*FAST, *given, *overrides])


def live(models: Path, folder: Path, *overrides: str) -> Recipe:
    return tiny(models, folder, f"teacher={models / 'teacher'}", *overrides)


def remote(models: Path, folder: Path, url: str, *overrides: str, **more: Any) -> Recipe:
    settings = {
        "kind": "remote",
        "url": url,
        "model": str(models / "teacher"),
        "token_env": VARIABLE,
        "retries": 1,
        "patience_seconds": 1800,
        **more,
    }
    return tiny(models, folder, f"teacher={json.dumps(settings)}", *overrides)


def weights(recipe: Recipe, **how: bool) -> bytes:
    return (run_recipe(recipe, **how).student / "model.safetensors").read_bytes()


def troubles(found: list[Finding]) -> list[str]:
    """What is wrong with the server; the tiny models' ends of a turn are another matter."""
    return [f.text for f in found if (f.verdict, f.subject) == ("wrong", "server")]


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [one["loss"] for line in lines if "loss" in (one := json.loads(line))]


@pytest.mark.parametrize("extra", [(), ("move=taid",), ("objective=jsd", "training.fused=false")])
def test_a_run_from_a_server_ends_with_the_live_runs_weights(
    models: Path, server: Server, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    one = weights(remote(models, tmp_path / "one", server.url, *extra))
    assert one == weights(live(models, tmp_path / "two", *extra))
    rows = [json.loads((tmp_path / name / "summary.json").read_text())["rows"] for name in
            ("one", "two")]  # fmt: skip
    for mine, theirs in zip(*rows, strict=True):
        for name in ("forward_kl", "perplexity", "top1_agreement"):
            assert mine[name] == theirs[name]


@pytest.mark.parametrize(
    "form", [{"answer": "logits"}, {"answer": "top_k", "top_k": VOCABULARY, "rest": "tail_bucket"}]
)
def test_every_form_begins_with_the_live_loss_and_is_measured_alike(
    models: Path, server: Server, tmp_path: Path, form: dict[str, Any]
) -> None:
    """Also the mass behind the shared entries, of both heads."""
    short = ("training.num_steps=1", "training.save_every=null")
    mine = run_recipe(remote(models, tmp_path / "one", server.url, *short, **form))
    theirs = run_recipe(live(models, tmp_path / "two", *short))
    assert losses(mine.folder)[0] == pytest.approx(losses(theirs.folder)[0], rel=1e-5)
    lines = [(run.folder / "metrics.jsonl").read_text().splitlines() for run in (mine, theirs)]
    first = [next(json.loads(x) for x in one if '"eval"' in x) for one in lines]
    for name in ("forward_kl", "student_excluded_mass", "teacher_excluded_mass"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-4)
    assert first[0]["teacher_excluded_mass"] > 0


def test_a_temperature_is_taken_at_the_server_and_by_nobody_twice(
    models: Path, server: Server, tmp_path: Path
) -> None:
    hot = ("objective={kind: forward_kl, temperature: 2}", "training.num_steps=1")
    form = {"answer": "top_k", "top_k": VOCABULARY, "temperature": 2}
    mine = run_recipe(remote(models, tmp_path / "one", server.url, *hot, **form))
    theirs = run_recipe(live(models, tmp_path / "two", *hot))
    assert losses(mine.folder)[0] == pytest.approx(losses(theirs.folder)[0], rel=1e-5)


@pytest.mark.parametrize("form", [{}, {"answer": "top_k", "top_k": 9}])
def test_a_student_that_writes_is_read_by_the_server(
    models: Path, server: Server, tmp_path: Path, form: dict[str, Any]
) -> None:
    own = (
        "rollouts={kind: student, data: 'preset:tiny.jsonl', max_completion_tokens: 6}",
        "evaluation.written_rows=2",
    )
    mine = weights(remote(models, tmp_path / "one", server.url, *own, **form))
    if not form:
        assert mine == weights(live(models, tmp_path / "two", *own))


@pytest.mark.parametrize("form", [{}, {"answer": "top_k", "top_k": 9}])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(
    models: Path, server: Server, tmp_path: Path, form: dict[str, Any]
) -> None:
    """The run is killed; its other half asks the server at other moments, with an empty memory."""
    recipe = remote(models, tmp_path / "killed", server.url, **form)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    process = multiprocessing.get_context("spawn").Process(
        target=killed_run, args=(str(tmp_path / "recipe.yaml"), 3)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = weights(recipe, resume=True)
    assert resumed == weights(remote(models, tmp_path / "whole", server.url, **form))


def killed_run(recipe: str, at: int) -> None:
    run_recipe(load(recipe), narrator=Killer("Training", at))


def test_a_run_pauses_while_its_server_is_dead_and_goes_on_when_it_is_back(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real server is killed in the middle of the run, and started again at its address."""
    with serving(models / "teacher") as own:
        recipe = remote(models, tmp_path / "one", own.url, remember_megabytes=0, retries=1)

        def back() -> None:
            while not any("is paused" in record.getMessage() for record in caplog.records):
                time.sleep(0.05)
            own.start()

        revived = threading.Thread(target=back)
        outcome = run_recipe(recipe, narrator=Murderer(own, revived, at=2))
        revived.join()
    assert not outcome.interrupted
    told = [record.getMessage() for record in caplog.records]
    assert any(f"{own.url} is back after" in line for line in told)
    mine = (outcome.student / "model.safetensors").read_bytes()
    assert mine == weights(live(models, tmp_path / "two"))


@final
class Murderer(Narrator):
    """Kills the server once a step is done."""

    def __init__(self, server: Server, then: threading.Thread, *, at: int) -> None:
        self._server, self._then, self._at = server, then, at

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator[Advance]:
        def advance(done: int, note: str = "") -> None:
            if title == "Training" and done == self._at:
                self._server.kill()
                self._then.start()

        yield advance

    @override
    def say(self, text: str) -> None:
        pass


def test_a_run_does_not_go_on_with_another_teacher(
    models: Path, server: Server, tmp_path: Path
) -> None:
    short = ("training.num_steps=2", "keep_checkpoints=true")
    run_recipe(remote(models, tmp_path / "run", server.url, *short))
    (tmp_path / "run" / "measured.json").unlink()
    with serving(models / "other", "--served-name", str(models / "teacher")) as other:
        with pytest.raises(CheckpointError, match=r"teacher\.served\.weights"):
            run_recipe(remote(models, tmp_path / "run", other.url, *short), resume=True)
        found = examine(remote(models, tmp_path / "new", other.url))
    wrong = troubles(found)
    assert len(wrong) == 1
    assert "is off by" in wrong[0]
    # At another address it is the same teacher.
    with between(server, lambda _path, reply: reply) as proxy:
        again = remote(models, tmp_path / "run", proxy.url, *short, timeout_seconds=7)
        assert run_recipe(again, resume=True).step == 2


def test_the_doctor_asks_the_server_and_compares(
    models: Path, server: Server, tmp_path: Path
) -> None:
    for form in ({}, {"answer": "top_k", "temperature": 1.0}, {"answer": "logits"}):
        found = examine(remote(models, tmp_path / "run", server.url, **form))
        assert troubles(found) == []
        texts = [f.text for f in found if f.subject == "server"]
        assert "serves" in texts[0]
        assert "says what its weights say here (float32) on 3 rows, within" in texts[1]
    none = remote(models, tmp_path / "run", server.url, parity_rows=0)
    assert "was not compared" in next(
        f.text for f in reversed(examine(none)) if f.subject == "server"
    )


@pytest.mark.parametrize(
    ("url", "more", "complaint"),
    [
        ("http://127.0.0.1:9", {}, "does not answer /identity"),
        (None, {"served_name": "gpt-17"}, "its model is .*teacher; it must be gpt-17"),
        (None, {"token_env": "HOME"}, r"HOME, whose token is not the server's.* answers 401"),
        (None, {"model": "student"}, "its vocabulary size is 268; it must be 272"),
    ],
)
def test_what_the_doctor_finds_wrong_a_run_refuses_before_its_first_step(
    models: Path, server: Server, tmp_path: Path, url: str | None, more: Any, complaint: str
) -> None:
    if "model" in more:
        more = {"model": str(models / more["model"]), "served_name": str(models / "teacher")}
    recipe = remote(models, tmp_path / "run", url or server.url, retries=0, **more)
    found = examine(recipe)
    (wrong,) = troubles(found)
    with pytest.raises((RemoteError, ConfigError), match=complaint) as caught:
        run_recipe(recipe)
    assert str(caught.value) == wrong
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_show_says_who_will_be_asked_and_asks_nobody(models: Path, tmp_path: Path) -> None:
    recipe = remote(models, tmp_path, "http://127.0.0.1:9", answer="top_k", top_k=7)
    told = dict(outline_of(recipe).lines())
    assert told["teacher"].startswith(f"remote: top 7 of {models / 'teacher'} from tutelage serve")
    assert "not asked yet" in told["teacher"]
    assert any("head" in name for name in told)


@pytest.mark.parametrize(
    ("more", "overrides", "complaint"),
    [
        ({"api": "vllm"}, (), r"teacher\.answer is hidden, and teacher\.api is vllm"),
        (
            {"api": "vllm", "answer": "top_k", "temperature": 2},
            ("objective={kind: forward_kl, temperature: 2}",),
            r"teacher\.temperature is 2, and teacher\.api is vllm",
        ),
        ({"answer": "top_k"}, ("objective=concrete_score",), "concrete_score on a top-k answer"),
        ({"answer": "top_k"}, ("objective=direct_logit",), "must be a divergence"),
        ({"answer": "top_k"}, ("move=taid",), r"move\.kind is taid, and top_k answers are part"),
        (
            {"answer": "top_k"},
            ("objective={kind: forward_kl, temperature: 2}",),
            r"objective\.temperature is 2; it must be 1",
        ),
        ({"answer": "top_k", "rest": "truncated"}, ("objective=jsd",), "rest is truncated"),
        ({"top_k": 7}, (), r"teacher\.top_k is 7, and teacher\.answer is hidden"),
        ({"rest": "tail_bucket"}, (), r"teacher\.rest is tail_bucket, and teacher\.answer"),
        ({"token_env": "NOT_THERE"}, (), r"teacher\.token_env is NOT_THERE, which is not set"),
        ({}, ("rollouts={kind: teacher, data: 'preset:tiny.jsonl'}",), "which only reads"),
    ],
)
def test_what_cannot_be_learned_is_refused_without_asking(
    models: Path, tmp_path: Path, more: Any, overrides: tuple[str, ...], complaint: str
) -> None:
    recipe = remote(models, tmp_path, "http://127.0.0.1:9", *overrides, **more)
    (line,) = contradictions(recipe)
    assert re.search(complaint, line)
    with pytest.raises(ConfigError):
        run_recipe(recipe)


def test_the_token_is_in_no_file_of_a_run(models: Path, server: Server, tmp_path: Path) -> None:
    outcome = run_recipe(remote(models, tmp_path / "run", server.url, "keep_checkpoints=true"))
    files = [path for path in outcome.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_student_cut_from_the_teacher_takes_the_weights_that_are_here(
    models: Path, server: Server, tmp_path: Path
) -> None:
    recipe = remote(models, tmp_path / "run", server.url, "student={kind: pruned, keep_layers: 1}")
    found = evaluate_folder(run_recipe(recipe).folder)["rows"]
    assert found[0]["forward_kl"] > 0
