"""What a recipe says reaches what is built from it: seeds, rows, dtypes, precisions, the pair."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import FAST
from tests.tiny_models import tiny_llama
from tutelage.core.errors import ConfigError
from tutelage.core.run_log import RunFolder, read_jsonl
from tutelage.core.targets import HiddenTarget
from tutelage.recipes.assemble import (
    SharedWork,
    Work,
    assemble,
    batches,
    evaluation_options,
    make_student,
    make_trainer,
)
from tutelage.recipes.check import check_recipe
from tutelage.recipes.config import Recipe, baseline, load
from tutelage.recipes.measure import Measurer, Scribe
from tutelage.recipes.narrator import Silence
from tutelage.recipes.rows import Rows, prepare_rows
from tutelage.recipes.toy import byte_tokenizer
from tutelage.training import Trainer

FRESH = "student={kind: fresh, config: {num_hidden_layers: 1}}"


def tiny(*overrides: str) -> Recipe:
    return load("tiny", [*FAST, *overrides])


def work_of(recipe: Recipe) -> Work:
    return assemble(recipe, None, Silence())


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    work = work_of(recipe)
    student = make_student(recipe, work)
    return make_trainer(recipe, work, student, output=folder, evaluate=None, hooks=())


def rows_of(*overrides: str) -> Rows:
    return prepare_rows(tiny(*overrides), byte_tokenizer())


def rows_in(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def questions(name: str, num_rows: int = 8) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {n}?", "completion": f"{n} it is."} for n in range(num_rows)]


def save(folder: Path, dtype: torch.dtype = torch.float32, **sizes: Any) -> Path:
    tiny_llama(**sizes).to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_baseline_takes_all_the_settings_it_names() -> None:
    other = "{objective: jsd, training: {learning_rate: 0.5}, seed: 9, student: {keep_layers: 3}}"
    recipe = tiny(f"baselines={{other: {other}}}")
    one = baseline(recipe, "other")
    assert one.objective.kind == "jsd"
    assert one.training.learning_rate == 0.5
    assert one.training.num_steps == recipe.training.num_steps
    assert one.seed == 9
    assert one.student.kind == "pruned"
    assert one.student.keep_layers == 3


def test_a_move_that_a_baseline_names_itself_is_never_left_out_in_silence() -> None:
    recipe = tiny("baselines={other: {objective: cross_entropy, move: taid}}")
    with pytest.raises(ConfigError, match=r"baselines\.other\.move\.kind is taid"):
        check_recipe(recipe)


def test_the_seed_decides_on_a_fresh_student_and_nothing_else_does() -> None:
    first, again, other = (
        make_student(recipe, work_of(recipe)).lm.head.weight
        for recipe in (tiny(FRESH), tiny(FRESH), tiny(FRESH, "seed=1"))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_seed_decides_on_the_order_of_the_rows_and_reaches_the_trainer(tmp_path: Path) -> None:
    trainers = [trainer_of(tiny(f"seed={seed}"), tmp_path) for seed in (0, 0, 1)]
    orders = [[row.prompt.name for row in one.rollouts.take(16)] for one in trainers]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert [one.seed for one in trainers] == [0, 0, 1]


def test_rows_may_be_read_as_they_lie(tmp_path: Path) -> None:
    recipe = tiny("rollouts.shuffle=false")
    taken = trainer_of(recipe, tmp_path).rollouts.take(16)
    lying = prepare_rows(recipe, byte_tokenizer()).training[:16]
    assert [row.prompt.name for row in taken] == [row.prompt.name for row in lying]


def test_no_held_out_row_is_trained_on() -> None:
    rows = rows_of("evaluation.num_rows=7")
    training, held_out = (
        {row.prompt.name for row in part} for part in (rows.training, rows.held_out)
    )
    assert len(held_out) == 7
    assert training.isdisjoint(held_out)
    assert len(training | held_out) == len(rows_of("evaluation.num_rows=0").training)


def test_rows_to_hold_out_may_have_a_file_of_their_own(tmp_path: Path) -> None:
    data = rows_in(tmp_path / "rows.jsonl", questions("Why"))
    own = rows_in(tmp_path / "own.jsonl", questions("How"))
    rows = rows_of(f"rollouts.data={data}", f"evaluation.data={own}", "evaluation.num_rows=3")
    assert len(rows.training) == 8
    assert len(rows.held_out) == 3
    assert all("rows.jsonl" in row.prompt.name for row in rows.training)
    assert all("own.jsonl" in row.prompt.name for row in rows.held_out)
    assert rows.notes == []


def test_a_held_out_prompt_that_is_trained_on_too_is_told(tmp_path: Path) -> None:
    repeated = [*questions("Why"), questions("Why")[0]]
    data = rows_in(tmp_path / "rows.jsonl", repeated)
    rows = rows_of(f"rollouts.data={data}", "evaluation.num_rows=1")
    assert rows.notes == ["1 held-out prompts also occur among the training rows."]


def test_settings_of_the_rows_reach_the_rows(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant") * 2]
    data = rows_in(tmp_path / "rows.jsonl", [{"messages": turns}] * 4)
    few = (f"rollouts.data={data}", "evaluation.num_rows=0")
    last = rows_of(*few).training[0]
    every = rows_of(*few, "rollouts.trained_turns=all").training[0]
    assert len(every.completion_ids) > len(last.completion_ids)
    template = "{% for m in messages %}{{ m['content'] }}{{ mark }}{% endfor %}"
    own = rows_of(
        *few,
        f'rollouts.chat_template="{template}"',
        "rollouts.template_arguments={mark: '<|end|>'}",
        "rollouts.num_rows=3",
    )
    assert len(own.training) == 3
    text = byte_tokenizer().decode(own.training[0].completion_ids)
    assert text == "assistant<|end|>"


@pytest.mark.parametrize(
    ("asked", "held"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)],
)
def test_a_teachers_dtype_is_the_saved_one_or_the_one_asked_for(
    asked: str, held: torch.dtype, tmp_path: Path
) -> None:
    teacher = save(tmp_path / "teacher", torch.bfloat16)
    work = work_of(tiny(f"teacher={{model: {teacher}, dtype: {asked}}}"))
    assert work.teacher_model is not None
    assert {p.dtype for p in work.teacher_model.lm.parameters()} == {held}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_a_precision_holds_for_training_and_for_measuring(
    precision: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    recipe = tiny(f"training.precision={precision}")
    options = evaluation_options(recipe)
    assert options.dtype == dtype
    assert options.fused.matmul_dtype == dtype
    assert trainer_of(recipe, tmp_path).settings == recipe.training


def test_padding_of_the_vocabulary_is_never_written_when_measuring(tmp_path: Path) -> None:
    teacher, folder = save(tmp_path / "t"), tmp_path / "s"
    model = tiny_llama(vocab_size=264, tie_word_embeddings=False)
    with torch.no_grad():
        # Whatever the text, the likeliest entries of all are padding.
        model.lm_head.weight[-1] = -100 * model.lm_head.weight[-2]
        model.lm_head.weight[-2] *= 100
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    recipe = tiny(f"teacher={teacher}", f"student={folder}", "evaluation.written_rows=2")
    work = work_of(recipe)
    student = make_student(recipe, work)
    assert work.num_real(recipe) == len(byte_tokenizer())
    found = Measurer(recipe, work, student).written()
    assert math.isfinite(found["written_forward_kl"])
    run = RunFolder(tmp_path / "run")
    run.create()
    Scribe(recipe=recipe, work=work, folder=run, narrator=Silence()).samples("before", student)
    assert all(line["completion"] for line in read_jsonl(run.samples))


def test_what_a_recipe_names_is_what_its_trainer_has(tmp_path: Path) -> None:
    recipe = tiny("objective=jsd", "move=budget", "baselines={}")
    trainer = trainer_of(recipe, tmp_path)
    assert trainer.objective == recipe.objective
    assert trainer.move == recipe.move
    assert trainer.settings == recipe.training


def test_a_teacher_answers_over_the_entries_that_both_know_and_remembers(tmp_path: Path) -> None:
    teacher, student = save(tmp_path / "t", vocab_size=264), save(tmp_path / "s", vocab_size=262)
    recipe = tiny(f"teacher={teacher}", f"student={student}")
    work = work_of(recipe)
    assert work.teacher is not None
    (batch,) = batches(work.rows.held_out, recipe, work)
    for _ in range(2):
        target = work.teacher.score(batch)
    assert isinstance(target, HiddenTarget)
    assert target.head.num_real == len(byte_tokenizer())
    assert work.teacher.num_remembered_rows == len(work.rows.held_out)
    forgetful = work_of(tiny("teacher.remember_megabytes=0")).teacher
    assert forgetful is not None
    forgetful.score(batch)
    forgetful.score(batch)
    assert forgetful.num_remembered_rows == 0


def test_layers_are_chosen_once_and_a_list_of_them_is_obeyed() -> None:
    recipe = tiny()
    work = work_of(recipe)
    make_student(recipe, work)
    assert set(work.chosen_layers) == {2}
    # As if influence had said so: another student of the same work begins with these.
    work.chosen_layers[2] = (1, 2)
    listed = make_student(tiny("student.choose=[1, 2]"), work)
    other = make_student(tiny("student.choose=[0, 3]"), work)
    three = make_student(tiny("student.keep_layers=3"), work)
    again = make_student(recipe, work)
    weights, chosen, not_chosen = (
        [p.detach() for p in one.lm.parameters()] for one in (again, listed, other)
    )
    assert all(torch.equal(a, b) for a, b in zip(weights, chosen, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, not_chosen, strict=True))
    assert three.lm.config.num_hidden_layers == 3
    assert len(work.chosen_layers[3]) == 3


def test_influence_is_judged_by_training_rows_and_never_by_held_out_ones() -> None:
    recipe = tiny("student.keep_layers=1", "evaluation.num_rows=4")
    work = work_of(recipe)
    make_student(recipe, work)
    blind = Work(
        tokenizer=work.tokenizer,
        rows=Rows(training=work.rows.training, held_out=[], notes=[]),
        teacher_model=work.teacher_model,
        teacher=work.teacher,
        ranks=work.ranks,
    )
    make_student(recipe, blind)
    assert blind.chosen_layers == work.chosen_layers


def test_runs_share_rows_and_teacher_only_where_both_are_the_same() -> None:
    shared = SharedWork(Silence())
    first = shared.for_recipe(tiny())
    assert shared.for_recipe(tiny("seed=5", "objective=jsd", "training.num_steps=9")) is first
    for change in ("teacher.seed=2", "rollouts.num_rows=50", "evaluation.num_rows=9"):
        assert shared.for_recipe(tiny(change)) is not first
