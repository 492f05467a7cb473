"""Real tokenizers that have nothing in common: SmolLM2's with Gemma's, and with Qwen3's."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from tests.real_models import gemma, need_real_teacher, qwen3_tokenizer
from tests.tiny_models import tiny_llama
from tutelage.cli.main import app
from tutelage.core.run_log import read_metrics
from tutelage.models import CausalLM, save_model

pytestmark = [pytest.mark.slow, pytest.mark.real]

# A base model has no template of its own.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def trained(folder: Path, **recipe: Any) -> list[dict[str, Any]]:
    """A few steps by the command line; what they logged."""
    questions = [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Do you like naïve café music?", "Yes, I do: “déjà vu” is my favourite song."),
        ("What is 12 + 13?", "12 + 13 = 25."),
        ("Say hello in Japanese.", "こんにちは means hello."),
    ]
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in questions
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "objective": {"kind": "aligned_kl"},
        "evaluation": {"num_rows": 0},
        "report": {"enabled": False},
        "output": str(folder / "run"),
        **recipe,
        "rollouts": {"data": str(folder / "rows.jsonl"), **recipe.get("rollouts", {})},
        "training": {"num_steps": 3, "rows_per_step": 4, "warmup_steps": 0, **recipe["training"]},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    done = CliRunner().invoke(app, ["train", str(folder / "run.yaml")])
    assert done.exit_code == 0, done.output
    return list(read_metrics(folder / "run" / "metrics.jsonl", phase="train"))


def test_gemma_teaches_smollm(tmp_path: Path) -> None:
    steps = trained(
        tmp_path,
        student={"kind": "loaded", "model": need_real_teacher()},
        teacher={"kind": "live", "model": gemma(), "dtype": "float32"},
        rollouts={"teacher_template": PLAIN},
        training={"learning_rate": 5e-5},
    )
    losses = [line["loss"] for line in steps]
    assert losses[-1] < losses[0]
    for line in steps:
        assert 0.5 < line["aligned_single_share"] < line["aligned_token_share"]
        assert line["aligned_byte_share"] > 0.95
        assert line["aligned_lost_row_share"] == 0


def test_smollm_teaches_a_student_with_the_tokenizer_of_qwen3(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(qwen3_tokenizer())
    student = CausalLM(tiny_llama(0, vocab_size=len(tokenizer), tie_word_embeddings=True))
    save_model(student, tokenizer, tmp_path / "student")
    steps = trained(
        tmp_path,
        student={"kind": "loaded", "model": str(tmp_path / "student")},
        teacher={"kind": "live", "model": need_real_teacher(), "dtype": "float32"},
        training={"num_steps": 8, "learning_rate": 1e-2},
    )
    losses = [line["loss"] for line in steps]
    assert losses[-1] < 0.8 * losses[0]
    for line in steps:
        assert 0.5 < line["aligned_single_share"] < line["aligned_token_share"]
        assert line["aligned_byte_share"] > 0.95
        assert line["aligned_lost_row_share"] == 0
