"""Every mistake a user can make is one line that names where it is and the way out, and a code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import FAST, Words
from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.recipes.tree import preset_names


def told(tutelage: Words, *words: str, code: int) -> str:
    """The one line a command ends with."""
    result = tutelage(*words)
    assert result.exit_code == code, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("tutelage: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0].removeprefix("tutelage: ")


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def good_rows(num_rows: int = 12) -> list[dict[str, str]]:
    return [{"prompt": f"Say {n}.", "completion": f"{n}"} for n in range(num_rows)]


def save_tiny(folder: Path, **sizes: Any) -> str:
    tiny_llama(**sizes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["objective.temprature=3"],
            "objective.temprature is not a setting of forward_kl. Did you mean temperature?",
        ),
        (
            ["training.num_steps=-3"],
            "training.num_steps is -3; it must be greater than 0.",
        ),
        (
            ["training.num_steps=soon"],
            "training.num_steps is 'soon'; it must be a whole number.",
        ),
        (
            ["training.precision=fp8"],
            "training.precision is 'fp8'; it must be 'fp32' or 'bf16'.",
        ),
        (
            ["temperature=2"],
            "temperature is not a setting of a recipe. Did you mean teacher.temperature or rol",
        ),
        (
            ["student={kind: loaded}"],
            "student.model is missing; it must be given. Add it to the recipe.",
        ),
        (
            ["baselines.other={objective: {kind: jsd, betta: 1}}"],
            "baselines.other.objective.betta is not a setting of jsd.",
        ),
        (
            ["evaluation.num_rows=0", "training.evaluate_every=5"],
            "training.evaluate_every is 5 and evaluation.num_rows is 0; it must be null",
        ),
        (
            ["rollouts.num_rows=10", "evaluation.num_rows=10"],
            "evaluation.num_rows is 10; it must be less than rollouts.num_rows (10)",
        ),
        (
            ["move=taid", "objective=reverse_kl"],
            "move.kind is taid with reverse_kl; it must be an objective such as forward_kl.",
        ),
        (
            ["move=taid", "objective={kind: concrete_score, weights: [student, student]}"],
            "move.kind is taid with concrete_score (weights ['student', 'student']); it must be",
        ),
        (
            ["move=taid", "objective=cross_entropy"],
            "move.kind is taid, but cross_entropy reads no target that could move",
        ),
        (
            ["move={kind: taid, momentum: 0.5}"],
            "move.momentum is 0.5, which the linear schedule does not read",
        ),
        (
            ["teacher=null", "student.model=package:none"],
            "teacher is missing, and forward_kl learns from one; it must be given.",
        ),
        (
            ["training.warmup_steps=99"],
            "training.warmup_steps is 99; it must be less than training.num_steps",
        ),
        (
            ["student.keep_layers=9"],
            "student.keep_layers is 9; it must be from 1 to 4",
        ),
        (["seed"], "'seed' is not an override; it must be PATH=VALUE"),
    ],
)
def test_a_bad_setting_is_told_before_anything_is_loaded(
    tutelage: Words, words: list[str], line: str
) -> None:
    extra = [] if words[0].startswith("baselines") else ["baselines={}"]
    assert told(tutelage, "train", "tiny", *extra, *words, code=2).startswith(line)
    assert not Path("runs/tiny/metrics.jsonl").exists()


def test_an_unknown_kind_lists_the_kinds_and_the_nearest(tutelage: Words) -> None:
    line = told(tutelage, "show", "tiny", "objective.kind=foward_kl", code=2)
    assert line.startswith("objective.kind is 'foward_kl'; it must be one of forward_kl, ")
    assert line.endswith("Did you mean forward_kl?")


def test_several_mistakes_are_told_at_once(tutelage: Words) -> None:
    result = tutelage("train", "tiny", "objective.temprature=1", "training.num_stps=3", "sed=1")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3


def test_an_unknown_preset_is_told_with_the_nearest(tutelage: Words) -> None:
    assert "Did you mean tiny?" in told(tutelage, "train", "tinny", code=2)


def test_broken_yaml_is_told_with_file_and_line(tutelage: Words, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("student: {kind: [\nteacher: x\n")
    assert told(tutelage, "train", "run.yaml", code=2).startswith("run.yaml, line ")


def test_a_missing_data_file_is_told(tutelage: Words) -> None:
    line = told(tutelage, "train", "tiny", "rollouts.data=rows.jsonl", code=3)
    assert "rows.jsonl" in line


@pytest.mark.parametrize(
    ("rows", "words", "part"),
    [
        ([{"question": "a", "completion": "b"}], [], "rows.jsonl:1"),
        ([{"prompt": "a", "completion": "b"}], ["rollouts.columns={prompt: question}"], "question"),
        ([*good_rows(), {"prompt": "", "completion": "b"}], [], "rows.jsonl:13: column prompt"),
        ([*good_rows(), {"prompt": "a", "completion": ""}], [], "rows.jsonl:13: column completion"),
        ([{"prompt": "a" * 500, "completion": "b"}], [], "rows.jsonl:1: the prompt is 500 tokens"),
        ([7], [], "rows.jsonl:1 is a int"),
        (good_rows(3), ["evaluation.num_rows=3"], "evaluation.num_rows is 3"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tutelage: Words, tmp_path: Path, rows: list[Any], words: list[str], part: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", rows)
    line = told(tutelage, "train", "tiny", "rollouts.data=rows.jsonl", *words, code=3)
    assert part in line


def test_rows_too_long_are_dropped_and_counted_where_asked(tutelage: Words, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [*good_rows(), {"prompt": "a" * 500, "completion": "b"}])
    words = ["rollouts.data=rows.jsonl", "rollouts.too_long=drop", "baselines={}"]
    assert tutelage("train", "tiny", *FAST, *words).exit_code == 0
    assert "1 rows were dropped" in str(json.loads(Path("runs/tiny/summary.json").read_text()))


def test_student_and_teacher_of_different_tokenizers_are_refused(
    tutelage: Words, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    save_tiny(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = told(tutelage, "train", "tiny", "student=other", code=4)
    assert line.startswith("student and teacher: The student's token")


def test_a_vocabulary_that_is_padded_differently_is_no_mistake(
    tutelage: Words, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "teacher")
    save_tiny(tmp_path / "student", vocab_size=264)
    words = ("teacher=teacher", "student=student", "baselines={}")
    result = tutelage("train", "tiny", *FAST, *words)
    assert result.exit_code == 0, result.output


def test_nan_in_a_teacher_is_told(tutelage: Words, tmp_path: Path) -> None:
    save_tiny(tmp_path / "teacher")
    path = tmp_path / "teacher" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    line = told(tutelage, "train", "tiny", "teacher=teacher", "student.choose=uniform", code=6)
    assert "nan" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tutelage: Words, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked" in told(tutelage, "train", "tiny", "output=locked/run", code=7)


def test_an_unwritable_folder_is_told(tutelage: Words, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "file/run" in told(tutelage, "train", "tiny", "output=file/run", code=7)


def test_an_output_that_is_taken_says_the_three_ways_out(tutelage: Words) -> None:
    assert tutelage("train", "tiny", *FAST, "baselines={}").exit_code == 0
    line = told(tutelage, "train", "tiny", code=7)
    assert line.startswith("output is runs/tiny, which already holds a run")
    assert "--resume" in line
    assert "--overwrite" in line
    assert "output=" in line


def test_overwriting_leaves_a_folder_alone_that_is_no_run(tutelage: Words, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    line = told(tutelage, "train", "tiny", "--overwrite", "output=thesis", code=7)
    assert "thesis" in line
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_resuming_nothing_is_told(tutelage: Words) -> None:
    assert "no run to go on with" in told(tutelage, "train", "tiny", "--resume", code=5)


def test_a_corrupt_checkpoint_is_told_with_its_file(tutelage: Words) -> None:
    words = (*FAST, "baselines={}", "keep_checkpoints=true")
    assert tutelage("train", "tiny", *words).exit_code == 0
    Path("runs/tiny/measured.json").unlink()
    weights = Path("runs/tiny/checkpoints/step-4/student.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    line = told(tutelage, "train", "tiny", *words, "--resume", code=5)
    assert str(weights) in line


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("nowhere/at/all", "nowhere/at/all"),
        ("gone.gguf", "gone.gguf does not exist"),
        ("package:not-installed-anywhere", "not-installed-anywhere"),
    ],
)
def test_a_model_that_is_not_there_is_told(tutelage: Words, model: str, part: str) -> None:
    assert part in told(tutelage, "train", "tiny", f"teacher={model}", code=4)


def test_weights_that_are_not_safetensors_are_refused(tutelage: Words, tmp_path: Path) -> None:
    save_tiny(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").rename(tmp_path / "old" / "pytorch_model.bin")
    assert "safetensors" in told(tutelage, "train", "tiny", "teacher=old", code=4)


def test_a_model_with_code_of_its_own_is_refused(tutelage: Words, tmp_path: Path) -> None:
    save_tiny(tmp_path / "strange")
    config = json.loads((tmp_path / "strange" / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "strange" / "config.json").write_text(json.dumps(config))
    line = told(tutelage, "train", "tiny", "teacher=strange", code=4)
    assert "trust_remote_code" in line


def test_debug_shows_the_traceback_before_the_line(tutelage: Words) -> None:
    result = tutelage("--debug", "train", "tiny", "objective.temprature=3")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tutelage: objective.temprature")


def test_every_exit_code_is_in_the_help(tutelage: Words) -> None:
    from tutelage.core import errors

    codes = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.TutelageError)
    }
    text = " ".join(tutelage("--help").output.split())
    assert all(f" {code} " in text for code in codes | {0, 130})


@pytest.mark.slow
def test_as_a_real_command_debug_goes_anywhere_and_the_code_is_the_shells(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("tutelage"), "show", "tiny", "sed=1"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert plain.returncode == 2
    assert plain.stderr == "tutelage: sed is not a setting of a recipe. Did you mean seed?\n"
    loud = subprocess.run(
        [*command, "--debug"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert loud.returncode == 2
    assert "Traceback" in loud.stderr


def test_presets_are_never_a_surprise() -> None:
    assert {"demo", "demo_taid", "demo_csd", "qwen3", "tiny"} <= set(preset_names())
