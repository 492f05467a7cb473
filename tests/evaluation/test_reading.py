"""What people read after a run: tokens side by side, samples, and speed."""

import dataclasses
import math

import pytest
import torch

from tests.tiny_models import byte_tokenizer, tiny_llama
from tutelage.core.errors import DataError
from tutelage.core.records import Prompt
from tutelage.evaluation import (
    Writer,
    generate_samples,
    shown_prompt,
    token_rows,
    tokens_per_second,
)
from tutelage.evaluation.tokens import token_texts
from tutelage.models import CausalLM
from tutelage.rollouts.engines import Sampling
from tutelage.teachers import LiveTeacher
from tutelage.text import Formatter, collate

STUDENT, TEACHER = CausalLM(tiny_llama(seed=1)), CausalLM(tiny_llama(seed=2))
TOKENIZER = byte_tokenizer()
ROWS = [
    Formatter(TOKENIZER).rollout({"prompt": prompt, "completion": completion}, "row")
    for prompt, completion in (("1 + 1?", " 2"), ("Name a river", " Elbe"), ("Hi", "!"))
]
SAMPLING = Sampling(max_completion_tokens=6, temperature=1.0)


def test_a_token_row_holds_each_trained_token_with_both_models_views_of_it() -> None:
    batches = [(collate(ROWS[:2]), ROWS[:2]), (collate(ROWS[2:]), ROWS[2:])]
    found = token_rows(STUDENT, LiveTeacher(TEACHER), batches, tokenizer=TOKENIZER, when="before")
    assert [line["row"] for line in found] == [0, 1, 2]
    assert [line["prompt"] for line in found] == ["1 + 1?", "Name a river", "Hi"]
    for line, row in zip(found, ROWS, strict=True):
        assert line["when"] == "before"
        assert "".join(line["tokens"]) == TOKENIZER.decode(list(row.completion_ids))
        ids = torch.tensor([[*row.prompt.student_ids, *row.completion_ids]])
        start = len(row.prompt.student_ids) - 1
        with torch.no_grad():
            q, p = (lm.model(ids).logits[0, start:-1].softmax(-1) for lm in (STUDENT, TEACHER))
        labels = torch.tensor(row.completion_ids)[:, None]
        for name, side in (("student", q), ("teacher", p)):
            assert line[f"{name}_top"] == token_texts(side.argmax(-1).tolist(), TOKENIZER)
            shares = side.gather(1, labels)[:, 0].tolist()
            assert line[f"{name}_label_p"] == pytest.approx(shares, rel=1e-4)
        nats = (p * (p / q).log()).sum(-1).tolist()
        assert line["forward_kl"] == pytest.approx(nats, rel=1e-3)


def test_untrained_tokens_are_left_out_of_a_token_row() -> None:
    trained = (False, True, True, False, False, True)
    row = dataclasses.replace(ROWS[1], trained=trained)
    whole = collate(ROWS[1:2])
    masked = dataclasses.replace(whole, loss_mask=torch.tensor(trained))
    for batch in (collate([row]), masked):
        (line,) = token_rows(
            STUDENT, LiveTeacher(TEACHER), [(batch, [row])], tokenizer=TOKENIZER, when="after"
        )
        assert line["tokens"] == ["E", "l", "</s>"]
        assert {len(value) for value in line.values() if isinstance(value, list)} == {3}


def test_special_tokens_and_leading_spaces_are_shown() -> None:
    assert token_texts([*TOKENIZER(" a").input_ids, 257], TOKENIZER) == [" ", "a", "</s>"]


def test_samples_show_prompt_answer_and_reference_and_repeat_with_their_seed() -> None:
    def said(lm: CausalLM, seed: int) -> list[dict]:
        writer = Writer(sampling=SAMPLING, tokenizer=TOKENIZER, seed=seed)
        return generate_samples(lm, ROWS, writer=writer, when="before")

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = said(STUDENT, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert [line["prompt"] for line in first] == ["1 + 1?", "Name a river", "Hi"]
    assert [line["reference"] for line in first] == ["2", "Elbe", "!"]
    assert all(line["when"] == "before" and "</s>" not in line["completion"] for line in first)
    assert said(STUDENT, 0) == first
    assert said(STUDENT, 1) != first
    assert said(TEACHER, 0) != first


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    greedy = Sampling(max_completion_tokens=6, temperature=0.0)
    writer = Writer(sampling=greedy, tokenizer=TOKENIZER, num_real=3)
    for row in writer.write(STUDENT, ROWS, dtype=None):
        assert max(row.completion_ids) < 3


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "as it is "}, "as it is "),
        ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, "u"),
        (
            {
                "messages": [
                    {"role": "user", "content": "first"},
                    {"role": "assistant", "content": "a"},
                    {"role": "user", "content": "last"},
                    {"role": "assistant", "content": "b"},
                ]
            },
            "last",
        ),
        ({}, "ids"),
    ],
)
def test_a_prompt_is_shown_as_the_user_wrote_it(row: dict, expected: str) -> None:
    ids = tuple(TOKENIZER("ids").input_ids)
    assert shown_prompt(Prompt(student_ids=ids, row=row), TOKENIZER) == expected


def test_speed_is_a_finite_number_of_tokens_and_touches_no_mode() -> None:
    lm = CausalLM(tiny_llama()).train()
    found = tokens_per_second(lm, [collate(ROWS).student], num_rounds=1)
    assert 0 < found < math.inf
    assert lm.training
    with pytest.raises(DataError, match="0 tokens; they must hold at least one"):
        tokens_per_second(lm, [])
