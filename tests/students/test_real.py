import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.real_models import REAL_TEACHER, real_teacher
from tutelage.core.records import TokenBatch
from tutelage.models import cache_folder, layers_of, load_config, parameter_count, save_model
from tutelage.students import PrunedStudent, build_student
from tutelage.text import Formatter, collate, match

pytestmark = pytest.mark.real

QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Name a colour.": "Blue is a colour.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "What do bees make?": "Bees make honey and wax.",
}
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def batch() -> TokenBatch:
    formatter = Formatter(real_teacher().tokenizer)
    rows = [
        {"prompt": [{"role": "user", "content": question}], "completion": answer}
        for question, answer in QUESTIONS.items()
    ]
    return collate([formatter.rollout(row, "questions") for row in rows])


def perplexity(lm: object) -> float:
    asked = batch()
    hidden = lm.hidden(asked.student)[asked.student.predicts]
    logits = hidden @ lm.head.weight.T
    return float(torch.nn.functional.cross_entropy(logits, asked.labels).exp())


@torch.no_grad()
def test_the_real_teacher_has_its_size_its_template_and_its_eos() -> None:
    loaded = real_teacher()
    count = parameter_count(load_config(REAL_TEACHER))
    assert count.total == loaded.lm.num_parameters() == 134_515_008
    assert count.head == 0
    assert count.num_layers == 30
    tokenizer = loaded.tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    rollout = Formatter(tokenizer).rollout({"prompt": question, "completion": "Paris."}, "row")
    assert tokenizer.decode(rollout.prompt.student_ids) == PROMPT
    assert tokenizer.decode(rollout.completion_ids) == "Paris.<|im_end|>"
    labels = collate([rollout]).labels
    assert labels[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert match(tokenizer, tokenizer, 49_152, 49_152).num_real == 49_152


@torch.no_grad()
def test_our_hidden_states_and_head_are_plain_transformers_logits() -> None:
    loaded, asked = real_teacher(), batch()
    (folder,) = (cache_folder() / "models").glob("SmolLM2*-float32")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    logits = loaded.lm.hidden(asked.student) @ loaded.lm.head.weight.T
    rows = asked.student.input_ids.split(asked.student.row_starts.diff().tolist())
    alone = torch.cat([plain(row[None]).logits[0] for row in rows])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-3)
    assert perplexity(loaded.lm) < 6
    assert AutoTokenizer.from_pretrained(folder).chat_template == loaded.tokenizer.chat_template


@torch.no_grad()
def test_a_student_of_21_layers_by_influence_is_far_better_than_a_uniform_one(
    tmp_path: Path,
) -> None:
    loaded, calibration = real_teacher(), [batch()]
    by_influence, uniform = (
        build_student(
            PrunedStudent(keep_layers=21, choose=how), teacher=loaded, calibration=calibration
        )
        for how in ("influence", "uniform")
    )
    assert len(layers_of(by_influence.lm.model)) == 21
    assert perplexity(by_influence.lm) < perplexity(uniform.lm) / 3
    folder = save_model(by_influence.lm, loaded.tokenizer, tmp_path / "student")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids
    asked = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    answers = [
        lm.generate(prompt, use_cache=cache, **asked).tolist()
        for lm in (by_influence.lm.model, plain)
        for cache in (True, False)
    ]
    assert answers == answers[:1] * 4
    # Half a gigabyte that pytest would keep for three sessions.
    shutil.rmtree(folder)
