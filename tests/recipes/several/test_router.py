"""Runs in which a router decides, row by row, what each teacher counts."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification
from typing_extensions import override

from tests.recipes.several.runs import (
    cached,
    models_and_rows,
    recipe_of,
    several,
    trained,
)
from tests.tiny_models import SIZES, byte_tokenizer
from tutelage.core.errors import CheckpointError, ConfigError, ModelError
from tutelage.recipes.check import contradictions
from tutelage.recipes.doctor import examine
from tutelage.recipes.narrator import Narrator
from tutelage.recipes.outline import outline_of
from tutelage.recipes.run import run_recipe
from tutelage.teachers.cache import CacheFolder

NAMES = ["one", "other"]
LIKELIHOOD = "by: router, router: {kind: likelihood, temperature: 0.1}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teachers, a classifier between them, and rows that name whom it names."""
    folder = models_and_rows(tmp_path_factory.mktemp("several"))
    chosen = classifier(folder / "router", NAMES)
    tokenizer, rows = byte_tokenizer(), []
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        with torch.no_grad():
            scores = chosen(**tokenizer(row["prompt"], return_tensors="pt")).logits[0]
        rows.append({**row, "teacher": NAMES[int(scores.argmax())]})
    assert {row["teacher"] for row in rows} == set(NAMES)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def classifier(folder: Path, labels: list[str], **more: Any) -> LlamaForSequenceClassification:
    """Labels in the order of its classes."""
    torch.manual_seed(3)
    sizes = {**SIZES, "num_hidden_layers": 1, "initializer_range": 1.0, "pad_token_id": None}
    config = LlamaConfig(**{**sizes, "id2label": dict(enumerate(labels)), **more})
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def by_classifier(folder: Path, more: str = "", name: str = "router") -> str:
    return f"by: router, router: {{kind: classifier, model: {folder / name}{more}}}"


@final
class Listener(Narrator):
    def __init__(self) -> None:
        self.said: list[str] = []

    @override
    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Any:
        yield lambda done, note="": None

    @override
    def say(self, text: str) -> None:
        self.said.append(text)


def weights_told(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[f"teacher_weight_{name}"] for name in NAMES} for line in lines if "loss" in line
    ]


def test_by_likelihood_caches_and_live_teachers_teach_the_same(folder: Path) -> None:
    alive = trained(recipe_of(folder, "alive", several(folder, LIKELIHOOD)))
    caches = {name: cached(folder, name) for name in NAMES}
    assert trained(recipe_of(folder, "cached", several(folder, LIKELIHOOD, **caches))) == alive
    one_by_one = several(folder, f"{LIKELIHOOD}, sequential: true")
    assert trained(recipe_of(folder, "in-turn", one_by_one)) == alive
    assert trained(recipe_of(folder, "even", several(folder, "by: mixture"))) != alive
    told = weights_told(folder / "alive")
    assert len(told) == 4
    for one in told:
        assert sum(one.values()) == pytest.approx(1)
        assert 0 < one["one"] < 1
    assert len({one["one"] for one in told}) > 1


def test_at_a_high_temperature_likelihood_is_the_even_mixture(folder: Path) -> None:
    flat = several(folder, "by: router, router: {kind: likelihood, temperature: 1.0e+9}")
    run_recipe(recipe_of(folder, "flat", flat))
    run_recipe(recipe_of(folder, "evenly", several(folder, "by: mixture")))
    mine, theirs = (
        load_file(folder / name / "student" / "model.safetensors") for name in ("flat", "evenly")
    )
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-4, atol=1e-6)


def test_what_the_student_writes_is_weighed_by_likelihood_too(folder: Path) -> None:
    extra = ("rollouts.kind=student", "rollouts.max_completion_tokens=4")
    recipe = recipe_of(
        folder, "writes", several(folder, LIKELIHOOD), *extra, "evaluation.written_rows=2"
    )
    assert list(contradictions(recipe)) == []
    assert run_recipe(recipe).summary["rows"][1]["written_forward_kl"] >= 0


def test_the_classifiers_first_choice_is_the_teacher_by_row(folder: Path) -> None:
    """Rows name whom it names; its labels are in another order than the teachers."""
    by_row = trained(recipe_of(folder, "by-row", several(folder, "by: row")))
    listener = Listener()
    routed = several(folder, by_classifier(folder, ", top: 1"))
    ended = run_recipe(recipe_of(folder, "routed", routed), narrator=listener)
    assert (ended.student / "model.safetensors").read_bytes() == by_row
    assert not [line for line in listener.said if "were cut" in line]
    told = weights_told(folder / "routed")
    assert all(sum(one.values()) == 1 for one in told)
    classifier(folder / "turned", NAMES[::-1])
    turned = several(folder, by_classifier(folder, ", top: 1", "turned"))
    assert trained(recipe_of(folder, "turned-run", turned)) != by_row
    # One at a time, each teacher is asked about its own rows alone.
    in_turn = several(folder, f"{by_classifier(folder, ', top: 1')}, sequential: true")
    assert trained(recipe_of(folder, "routed-turn", in_turn)) == by_row
    kept = [
        CacheFolder(folder / "routed-turn" / "answers" / name).store("training").num_rows
        for name in ("1-one", "2-other")
    ]
    assert sum(kept) == 12
    assert min(kept) > 0


def test_without_a_top_all_are_mixed_by_the_softmax_of_its_scores(folder: Path) -> None:
    soft = trained(recipe_of(folder, "soft", several(folder, by_classifier(folder))))
    hot = several(folder, by_classifier(folder, ", temperature: 9.0"))
    assert trained(recipe_of(folder, "hot", hot)) != soft
    gap = [max(abs(one["one"] - 0.5) for one in weights_told(folder / n)) for n in ("soft", "hot")]
    assert gap[0] > gap[1] > 0


def test_a_question_that_is_too_long_is_cut_and_counted(folder: Path) -> None:
    classifier(folder / "short", NAMES, max_position_embeddings=5)
    listener = Listener()
    routed = several(folder, by_classifier(folder, name="short"))
    run_recipe(recipe_of(folder, "cut", routed), narrator=listener)
    # "10 and" and the five after it have six bytes, the others five.
    (line,) = [line for line in listener.said if "were cut" in line]
    assert line.startswith("note: 6 of 16 questions were cut at the router's 5 tokens")


def test_a_run_goes_on_with_no_other_router(folder: Path) -> None:
    short = ("training.num_steps=2", "keep_checkpoints=true")
    run_recipe(recipe_of(folder, "again", several(folder, LIKELIHOOD), *short))
    (folder / "again" / "measured.json").unlink()
    other = several(folder, LIKELIHOOD.replace("0.1", "0.2"))
    with pytest.raises(CheckpointError, match=r"teacher\.router.*temperature.*0\.2"):
        run_recipe(recipe_of(folder, "again", other, *short), resume=True)


@pytest.mark.parametrize("labels", [["one", "others"], ["one", "other", "third"], ["one", "one"]])
def test_labels_that_are_not_the_teachers_are_named(folder: Path, labels: list[str]) -> None:
    classifier(folder / "odd", labels)
    recipe = recipe_of(folder, "never", several(folder, by_classifier(folder, name="odd")))
    with pytest.raises(ConfigError, match=r"whose labels are .*; they must be the names in"):
        run_recipe(recipe)
    assert any("whose labels are" in f.text for f in examine(recipe) if f.verdict == "wrong")


def test_a_classifier_in_another_format_or_without_its_last_layer_is_refused(folder: Path) -> None:
    model = classifier(folder / "bare", NAMES)
    model.model.save_pretrained(folder / "bare")
    config = json.loads((folder / "router" / "config.json").read_text())
    (folder / "bare" / "config.json").write_text(json.dumps(config))
    bare = recipe_of(folder, "never", several(folder, by_classifier(folder, name="bare")))
    with pytest.raises(ModelError, match=r"1 missing keys, first score\.weight"):
        run_recipe(bare)
    (folder / "bare" / "model.safetensors").rename(folder / "bare" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="it must hold safetensors"):
        run_recipe(bare)


@pytest.mark.parametrize(
    ("how", "overrides", "complaint"),
    [
        ("by: router", (), "teacher.by is router, and teacher.router is null"),
        ("by: row, router: {kind: likelihood}", (), "teacher.router is given, and teacher.by is"),
        (f"{LIKELIHOOD}, weights: {{one: 1, other: 1}}", (), "teacher.weights are given"),
        (f"{LIKELIHOOD}, column: who", (), "teacher.column is who"),
        ("by: router, router: {kind: likelihood, top: 3}", (), "teacher.router.top is 3; it must"),
        (
            "by: router, router: {kind: classifier, model: x}",
            ("rollouts.kind=student",),
            "teacher.router is a classifier, which is asked before",
        ),
        (
            "by: router, router: {kind: classifier, model: x}",
            ("evaluation.written_rows=1",),
            "teacher.router is a classifier, which is asked before",
        ),
    ],
)
def test_what_contradicts_a_router_is_said(
    folder: Path, how: str, overrides: tuple[str, ...], complaint: str
) -> None:
    (line,) = contradictions(recipe_of(folder, "never", several(folder, how), *overrides))
    assert complaint in line


def test_show_tells_which_router(folder: Path) -> None:
    told = dict(outline_of(recipe_of(folder, "never", several(folder, LIKELIHOOD))).lines())
    assert told["teacher"] == "several, by likelihood router: one (live), other (live)"
