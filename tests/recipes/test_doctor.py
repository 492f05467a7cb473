"""What the doctor must see: each trouble planted in a toy pair, one at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.cli.conftest import FAST
from tests.tiny_models import tiny_llama
from tutelage.recipes.config import load
from tutelage.recipes.doctor import Finding, examine
from tutelage.recipes.toy import byte_tokenizer

BEGIN, END, TURN = 256, 257, 259
TURN_ENDS = (
    "{% for message in messages %}{{ message['content'] }}<|turn|>{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)


def found(folder: Path, *overrides: str) -> list[Finding]:
    return examine(load("tiny", [*FAST, f"output={folder / 'run'}", *overrides]))


def told(findings: list[Finding], verdict: str, subject: str) -> str:
    return "\n".join(f.text for f in findings if (f.verdict, f.subject) == (verdict, subject))


def troubles(findings: list[Finding]) -> set[str]:
    return {finding.subject for finding in findings if finding.verdict == "wrong"}


def save(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, **sizes: Any) -> Path:
    tiny_llama(**sizes).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def rows_in(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    return f"rollouts.data={path}"


def answered(answer: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    }


@pytest.mark.parametrize(
    ("override", "subject", "text"),
    [
        ("student.dtype=bfloat16", "dtype", "student.dtype is bfloat16: small updates are lost"),
        ("training.micro_batch_tokens=8", "lengths", "micro_batch_tokens is 8, less than"),
        ("rollouts.max_completion_tokens=1", "end of turn", "every completion is cut"),
    ],
)
def test_a_setting_that_will_disappoint_is_noted(
    override: str, subject: str, text: str, tmp_path: Path
) -> None:
    findings = found(tmp_path, override)
    assert text in told(findings, "note", subject)
    assert troubles(findings) == set()


def test_a_float16_teacher_is_noted(tmp_path: Path) -> None:
    teacher = f"teacher={{model: {save(tmp_path / 'teacher')}, dtype: float16}}"
    assert "overflows" in told(found(tmp_path, teacher), "note", "dtype")


def test_an_output_that_holds_a_run_is_noted(tmp_path: Path) -> None:
    assert told(found(tmp_path), "note", "output") == ""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert "--resume" in told(found(tmp_path), "note", "output")


def test_messages_without_a_chat_template_are_wrong(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    pair = save(tmp_path / "pair", tokenizer)
    findings = found(tmp_path, f"student={pair}", f"teacher={pair}")
    assert troubles(findings) == {"rows"}
    assert "chat_template" in told(findings, "wrong", "rows")


def test_two_chat_templates_are_noted(tmp_path: Path) -> None:
    other = byte_tokenizer()
    other.chat_template = TURN_ENDS
    pair = f"teacher={save(tmp_path / 'teacher', other)}", f"student={save(tmp_path / 'student')}"
    assert "have different ones" in told(found(tmp_path, *pair), "note", "chat template")
    chosen = f'rollouts.chat_template="{TURN_ENDS}"'
    assert "different" not in told(found(tmp_path, *pair, chosen), "note", "chat template")


def test_a_template_that_plain_rows_leave_unused_is_noted(tmp_path: Path) -> None:
    plain = rows_in(tmp_path, {"prompt": "Say a.", "completion": "a"})
    assert "is not used" in told(found(tmp_path, plain), "note", "chat template")
    assert told(found(tmp_path), "note", "chat template") == ""


def test_a_teacher_that_ends_its_turn_otherwise_is_noted(tmp_path: Path) -> None:
    other = byte_tokenizer()
    other.eos_token = other.convert_ids_to_tokens(TURN)
    pair = f"teacher={save(tmp_path / 'teacher', other)}", f"student={save(tmp_path / 'student')}"
    assert "the teacher ends with '<|turn|>'" in told(found(tmp_path, *pair), "note", "tokenizer")


def test_a_tokenizer_without_an_end_is_wrong(tmp_path: Path) -> None:
    endless = byte_tokenizer()
    endless.eos_token = None
    pair = save(tmp_path / "pair", endless)
    findings = found(tmp_path, f"student={pair}", f"teacher={pair}")
    assert "no end-of-sequence token" in told(findings, "wrong", "tokenizer")


def test_a_prompt_that_begins_twice_is_wrong(tmp_path: Path) -> None:
    once = rows_in(tmp_path, {"prompt": "<s>Say a.", "completion": "a"})
    assert troubles(found(tmp_path, once)) == set()
    twice = rows_in(tmp_path, {"prompt": "<s><s>Say a.", "completion": "a"})
    assert "begin with two '<s>'" in told(found(tmp_path, twice), "wrong", "chat template")


def test_one_ending_that_generation_runs_past_is_wrong_beside_others_that_stop(
    tmp_path: Path,
) -> None:
    both = rows_in(tmp_path, {"prompt": "Say a.", "completion": "a"}, answered("a"))
    template = f'rollouts.chat_template="{TURN_ENDS}"'
    pair = [f"student={save(tmp_path / 'pair')}", f"teacher={tmp_path / 'pair'}"]
    findings = found(tmp_path, both, template, *pair)
    assert troubles(findings) == {"end of turn"}
    settings = tmp_path / "pair" / "generation_config.json"
    known = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**known, "eos_token_id": [END, TURN]}), encoding="utf-8")
    assert troubles(found(tmp_path, both, template, *pair)) == set()


def test_a_row_longer_than_a_model_reads_is_wrong(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", max_position_embeddings=24)
    findings = found(tmp_path, f"student={save(tmp_path / 'student')}", f"teacher={teacher}")
    assert troubles(findings) == {"lengths"}
    assert "the teacher reads 24" in told(findings, "wrong", "lengths")


def test_padding_rows_of_either_head_are_counted(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", vocab_size=264)
    student = save(tmp_path / "student", vocab_size=262)
    findings = found(tmp_path, f"student={student}", f"teacher={teacher}")
    assert troubles(findings) == set()
    assert "share 260 entries; 2 and 4 rows behind them" in told(findings, "fine", "vocabulary")
