"""Recipes whose rows are written while the run goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FAST
from tests.tiny_models import byte_tokenizer, tiny_gemma3, tiny_llama
from tutelage.core.errors import ConfigError, DataError
from tutelage.recipes.assemble import assemble
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, choices, load
from tutelage.recipes.doctor import examine
from tutelage.recipes.narrator import Silence
from tutelage.recipes.outline import outline_of
from tutelage.recipes.rows import described
from tutelage.recipes.run import run_recipe

SHORT = (*FAST, "rollouts.max_completion_tokens=12", "baselines={}")


def tiny(*overrides: str) -> Recipe:
    return load("tiny_on_policy", [*SHORT, *overrides])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts_only(folder: Path, num_rows: int = 12) -> str:
    path = folder / "prompts.jsonl"
    rows = [
        {"prompt": [{"role": "user", "content": f"Say {n}."}]}
        if n % 2
        else {"messages": [{"role": "user", "content": f"Spell {n}."}]}
        for n in range(num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_run_whose_rows_are_partly_written_logs_them_and_what_they_are_like(
    tmp_path: Path,
) -> None:
    outcome = run_recipe(tiny(f"output={tmp_path / 'run'}"))
    train = [line for line in lines(outcome.folder / "metrics.jsonl") if line["phase"] == "train"]
    assert [line["student_share"] for line in train] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert sum(line.get("written_share", 0) for line in train) > 1
    written = lines(outcome.folder / "rollouts.jsonl")
    assert {line["source"] for line in written} == {"student"}
    assert {line["step"] for line in written} <= {1, 2, 3, 4}
    for line in written:
        assert line["row"].startswith("tiny.jsonl") or "tiny.jsonl" in line["row"]
        assert line["num_tokens"] <= 12
        assert line["truncated"] == (not line["completion"].endswith("<|end|>"))
        assert line["mean_logp"] <= 0
    assert any("the student completes 20%" in note for note in outcome.summary["notes"])
    assert "the student completes" in (outcome.student / "README.md").read_text()


@pytest.mark.parametrize(
    "kind",
    [
        "{kind: student, data: preset:tiny.jsonl, max_completion_tokens: 12}",
        "{kind: teacher, data: preset:tiny.jsonl, max_completion_tokens: 12}",
        "{kind: mixed, otherwise: teacher, data: preset:tiny.jsonl, max_completion_tokens: 12}",
        "{kind: replay, buffer_rows: 16, data: preset:tiny.jsonl, max_completion_tokens: 12}",
    ],
)
def test_every_kind_of_rollouts_trains_a_student(kind: str, tmp_path: Path) -> None:
    recipe = tiny(f"rollouts={kind}", "training.num_steps=2", f"output={tmp_path / 'run'}")
    assert list(contradictions(recipe)) == []
    outcome = run_recipe(recipe)
    train = [line for line in lines(outcome.folder / "metrics.jsonl") if line["phase"] == "train"]
    assert all(line["written_share"] == 1 and line["loss"] > 0 for line in train)


def test_prompts_without_completions_will_do_where_a_model_writes(tmp_path: Path) -> None:
    data = prompts_only(tmp_path)
    rows = ("rollouts.kind=student", f"rollouts.data={data}", "training.num_steps=2")
    plain = load("tiny", [*SHORT, *rows, "evaluation.num_rows=0", f"output={tmp_path / 'run'}"])
    outcome = run_recipe(plain)
    assert {line["row"].split(":")[0] for line in lines(outcome.folder / "rollouts.jsonl")}
    held_out = load("tiny", [*SHORT, *rows])
    with pytest.raises(DataError, match=r"is held out and has no completion.*evaluation\.data"):
        assemble(held_out, None, Silence())
    elsewhere = load("tiny", [*SHORT, *rows, "evaluation.data=preset:tiny.jsonl"])
    work = assemble(elsewhere, None, Silence())
    assert all(row.completion_ids for row in work.rows.held_out)
    assert not any(row.completion_ids for row in work.rows.training)


def test_rows_to_be_mixed_need_completions_for_the_data_to_have_the_others(
    tmp_path: Path,
) -> None:
    recipe = tiny(f"rollouts.data={prompts_only(tmp_path)}")
    with pytest.raises(DataError, match=r"column completion is missing|no answer|assistant"):
        assemble(recipe, None, Silence())


def test_a_prompt_over_the_limit_is_refused_or_dropped_and_counted(tmp_path: Path) -> None:
    data = prompts_only(tmp_path)
    long = {"prompt": [{"role": "user", "content": "Say a lot. " * 20}]}
    with Path(data).open("a") as file:
        file.write(json.dumps(long) + "\n")
    rows = ("rollouts.kind=student", f"rollouts.data={data}", "evaluation.num_rows=0")
    with pytest.raises(DataError, match=r"prompts\.jsonl.*13.*must be at most 96"):
        assemble(load("tiny", [*SHORT, *rows]), None, Silence())
    work = assemble(load("tiny", [*SHORT, *rows, "rollouts.too_long=drop"]), None, Silence())
    assert len(work.rows.training) == 12
    assert "1 rows were dropped" in work.rows.notes[0]


def test_a_prompt_without_room_for_a_completion_is_refused_before_a_weight_is_loaded() -> None:
    recipe = tiny("rollouts.max_completion_tokens=1000")
    with pytest.raises(DataError, match=r"tiny\.jsonl.* come to 10\d\d tokens; .* at most 1024"):
        assemble(recipe, None, Silence())
    wrong = [finding for finding in examine(recipe) if finding.verdict == "wrong"]
    assert [finding.subject for finding in wrong] == ["rollouts"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            [
                "rollouts.kind=teacher",
                "teacher=null",
                "student=some/model",
                "objective=cross_entropy",
            ],
            "rollouts.kind is teacher and the teacher is to write, but teacher is missing",
        ),
        (
            ["rollouts.kind=student", "training={tokens_per_step: 100}"],
            "training.tokens_per_step is 100, and how many tokens a model writes",
        ),
        (
            ["rollouts.kind=student", "rollouts.trained_turns=all"],
            "rollouts.trained_turns is all, and a model writes only the last turn",
        ),
        (
            ["rollouts.kind=student", "objective=cross_entropy"],
            "rollouts.kind is student with cross_entropy on the completions' own tokens",
        ),
        (
            [
                "rollouts.kind=student",
                "baselines={other: {rollouts: {kind: dataset, data: elsewhere.jsonl}}}",
            ],
            "baselines.other.rollouts.data is 'elsewhere.jsonl'; it must be 'preset:tiny.jsonl'",
        ),
    ],
)
def test_rollouts_that_contradict_the_rest_are_refused(overrides: list[str], line: str) -> None:
    plain = load("tiny", ["baselines={}", "training.warmup_steps=0", *overrides])
    assert any(found.startswith(line) for found in contradictions(plain)), list(
        contradictions(plain)
    )


def test_a_share_of_another_kind_is_an_unknown_setting() -> None:
    with pytest.raises(ConfigError, match=r"rollouts\.student_share is not a setting of student"):
        load("tiny", ["rollouts.kind=student", "rollouts.student_share=0.5"])


def test_a_baseline_may_write_another_share() -> None:
    recipe = load(
        "tiny_on_policy", ["baselines={half: {rollouts: {kind: mixed, student_share: 1}}}"]
    )
    assert list(contradictions(recipe)) == []


def test_the_outline_and_the_doctor_tell_who_writes_and_how() -> None:
    recipe = tiny("rollouts.temperature=0.7", "rollouts.top_p=0.9", "rollouts.top_k=5")
    told = (
        "the student completes 20% (at last 100%) of the rows, the dataset the others; "
        "up to 12 tokens, at temperature 0.7, top_p 0.9, top_k 5"
    )
    assert described(recipe.rollouts) == told
    outline = outline_of(recipe)
    assert ("rollouts", told) in list(outline.lines())
    # 8 rows of 96 + 12 tokens, keys and values of 2 heads of 8, 2 layers, 4 bytes.
    cache = 8 * 108 * 2 * 2 * 8 * 2 * 4
    assert outline.memory_megabytes["keys and values while writing"] * 2**20 == cache
    assert outline.memory_megabytes["weights while writing"] * 2**20 == 4 * outline.student.total
    assert "weights while writing" not in outline_of(tiny("rollouts.engine=hf")).memory_megabytes
    found = examine(recipe)
    assert [f.text for f in found if f.subject == "rollouts" and f.verdict == "fine"] == [told]
    assert not [f for f in found if f.verdict == "wrong"]


def test_the_doctor_advises_on_greedy_students_long_rows_and_useless_memory() -> None:
    recipe = load(
        "tiny",
        ["rollouts.kind=student", "rollouts.temperature=0", "training.micro_batch_tokens=32"],
    )
    notes = [f.text for f in examine(recipe) if f.subject == "rollouts" and f.verdict == "note"]
    assert [note.split()[0] for note in notes] == ["a", "a", "what"]


def test_the_doctor_of_prompts_alone_names_where_writing_stops(tmp_path: Path) -> None:
    rows = ("rollouts.kind=student", f"rollouts.data={prompts_only(tmp_path)}")
    recipe = load("tiny", [*SHORT, *rows, "evaluation.num_rows=0"])
    found = examine(recipe)
    assert not [f for f in found if f.verdict == "wrong"]
    assert any("what is written stops at" in f.text for f in found)


def test_a_resumed_on_policy_run_ends_with_the_weights_and_rollouts_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    whole = run_recipe(tiny(f"output={tmp_path / 'whole'}"))
    recipe = tiny(f"output={tmp_path / 'broken'}", "keep_checkpoints=true")
    outcome = run_recipe(recipe)
    # As if killed after step 2: that checkpoint is the newest, and nothing behind it is known.
    shutil.rmtree(outcome.folder / "checkpoints" / "step-4")
    shutil.rmtree(outcome.student)
    done = json.loads((outcome.folder / "measured.json").read_text())
    done.pop("after")
    (outcome.folder / "measured.json").write_text(json.dumps(done))
    again = run_recipe(recipe, resume=True)
    for name in ("student/model.safetensors", "rollouts.jsonl"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_another_sampling_is_not_gone_on_with(tmp_path: Path) -> None:
    recipe = tiny(f"output={tmp_path / 'run'}", "keep_checkpoints=true")
    outcome = run_recipe(recipe)
    (outcome.folder / "measured.json").unlink()
    hotter = tiny(f"output={tmp_path / 'run'}", "rollouts.temperature=2")
    with pytest.raises(OSError, match=r"rollouts\.temperature is 2\.0; it must be 1\.0"):
        run_recipe(hotter, resume=True)


def test_the_teacher_writes_no_entry_that_the_student_does_not_know(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    padded = tmp_path / "teacher"
    tiny_llama(1, vocab_size=300).save_pretrained(padded)
    byte_tokenizer().save_pretrained(padded)
    recipe = tiny(
        f"student={folder}",
        f"teacher={{kind: live, model: '{padded}'}}",
        "rollouts={kind: teacher, data: preset:tiny.jsonl, max_completion_tokens: 12}",
        f"output={tmp_path / 'run'}",
        "training.num_steps=2",
    )
    outcome = run_recipe(recipe)
    assert all(line["source"] == "teacher" for line in lines(outcome.folder / "rollouts.jsonl"))


def test_an_engine_that_does_not_know_the_writer_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "gemma"
    tiny_gemma3().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    models = (f"student={folder}", f"teacher={{kind: live, model: '{folder}'}}")
    for writer in ("student", "teacher"):
        rows = (
            f"{{kind: {writer}, data: preset:tiny.jsonl, max_completion_tokens: 12, engine: slots}}"
        )
        recipe = tiny(
            *models, f"rollouts={rows}", f"output={tmp_path / writer}", "training.num_steps=2"
        )
        refused = rf"rollouts\.engine is slots.*family is gemma3_text \(the {writer} writes\)"
        with pytest.raises(ConfigError, match=refused):
            run_recipe(recipe)
        assert not (tmp_path / writer / "rollouts.jsonl").exists()


def test_every_kind_of_rollouts_is_listed_with_a_line() -> None:
    found = dict(choices("rollouts"))
    assert set(found) == {"dataset", "student", "teacher", "mixed", "replay"}
    assert all(found.values())
