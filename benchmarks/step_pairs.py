"""The pairs a step is measured on, written to a folder: models and rows.

`random` is small enough for any machine and shaped like a real step: a wide vocabulary, ragged
rows, half of each row prompt. `demo` is the demo's own pair and rows.
"""

import random
from pathlib import Path
from typing import Literal

import torch
from benchmarks.step_work import Batch, write_batches
from transformers import Qwen2Config, Qwen2ForCausalLM

from tutelage.models import save_model
from tutelage.recipes import load
from tutelage.recipes.assemble import assemble, make_student
from tutelage.recipes.narrator import Silence

PairName = Literal["random", "demo"]

VOCABULARY = 49_152
ROWS_PER_BATCH = 8
LONGEST_ROW = 512
SHORTEST_ROW = 128


def prepare(folder: Path, *, pair: PairName, num_batches: int) -> None:
    """Write the pair and its rows into an empty folder."""
    if pair == "random":
        prepare_random(folder, num_batches=num_batches)
    else:
        prepare_demo(folder, num_batches=num_batches)


def prepare_random(folder: Path, *, num_batches: int, seed: int = 0) -> None:
    """A random pair shaped like Qwen2, and rows of random ids."""
    torch.manual_seed(seed)
    _random_model(width=512, num_layers=4).save_pretrained(folder / "teacher")
    _random_model(width=256, num_layers=2).save_pretrained(folder / "student")
    draw = random.Random(seed)  # noqa: S311  row lengths, not secrets
    write_batches(folder, [random_batch(draw) for _ in range(num_batches)])


def _random_model(*, width: int, num_layers: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        max_position_embeddings=2 * LONGEST_ROW,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def random_batch(draw: random.Random) -> Batch:
    """Rows of evenly spread lengths; the prompt is between 35 and 65 hundredths of each."""
    rows: Batch = []
    for _ in range(ROWS_PER_BATCH):
        length = draw.randint(SHORTEST_ROW, LONGEST_ROW)
        num_prompt = round(length * draw.uniform(0.35, 0.65))
        ids = [draw.randrange(10, VOCABULARY) for _ in range(length)]
        rows.append((ids[:num_prompt], ids[num_prompt:]))
    return rows


def prepare_demo(folder: Path, *, num_batches: int) -> None:
    """The demo's teacher, its pruned student before the first step, and the demo's rows."""
    recipe = load("demo")
    work = assemble(recipe, None, Silence())
    assert work.teacher_model is not None, "the demo has a teacher"
    student = make_student(recipe, work)
    save_model(work.teacher_model.lm, work.tokenizer, folder / "teacher")
    save_model(student.lm, work.tokenizer, folder / "student")
    rows = [(list(r.prompt.student_ids), list(r.completion_ids)) for r in work.rows.training]
    starts = range(0, num_batches * ROWS_PER_BATCH, ROWS_PER_BATCH)
    write_batches(folder, [rows[start : start + ROWS_PER_BATCH] for start in starts])
