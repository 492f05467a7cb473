"""What only the teacher reads: worded, cut in its middle alone, before the very same completion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import EOS, TURN_END, byte_tokenizer
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Rollout
from tutelage.text import COLUMNS, Formatter, TeacherView, TooLongError, collate, wording_file

TOKENIZER = byte_tokenizer()
THINKING = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"What is {number} and 1?"}],
        "completion": [{"role": "assistant", "content": str(number + 1)}],
        "solution": f"Count on from {number}: {number + 1}.",
        "answer": number + 1,
        "feedback": f"You wrote {number}, which is one too few.",
        "wrong_solution": f"Count back from {number}: {number - 1}.",
        **columns,
    }


def plain(number: int, **columns: Any) -> dict[str, Any]:
    return row(number, prompt=f"{number} + 1 =", completion=f" {number + 1}", **columns)


def rollouts(*rows: Mapping[str, Any], **options: Any) -> list[Rollout]:
    named = ((one, f"rows.jsonl:{at}") for at, one in enumerate(rows, 1))
    return Formatter(TOKENIZER, **options).rollouts(named).rows


def view(**options: Any) -> TeacherView:
    return TeacherView(tokenizer=TOKENIZER, **options)


def told(rollout: Rollout) -> str:
    return str(TOKENIZER.decode(list(rollout.prompt.teacher_ids or ()), skip_special_tokens=False))


def one(given: Mapping[str, Any], **options: Any) -> str:
    return told(view(**options).rollouts(rollouts(given)).rows[0])


@pytest.mark.parametrize("make", [row, plain])
@pytest.mark.parametrize("context", [name for name in COLUMNS if name not in ("none", "other")])
def test_each_context_is_shown_with_the_problem_before_the_same_completion(make, context) -> None:
    before = rollouts(make(7), make(8))
    after = view(context=context).rollouts(before).rows
    for old, new, number in zip(before, after, (7, 8), strict=True):
        column = COLUMNS[context]
        assert str(make(number)[column]) in told(new)
        assert f"{number}" in told(new)
        assert new.completion_ids is old.completion_ids
        assert new.prompt.student_ids == old.prompt.student_ids
        assert len(new.prompt.teacher_ids or ()) > len(old.prompt.student_ids)


def test_a_conversation_goes_on_where_the_assistant_begins_and_a_plain_text_at_its_end() -> None:
    assert one(row(7)).endswith(f"{TURN_END}\n<|turn|>assistant\n")
    assert one(plain(7)).endswith("The problem:\n7 + 1 =")
    assert one(row(7)).index("What is 7") < one(row(7)).index("Count on from 7")


@pytest.mark.parametrize("make", [row, plain])
def test_without_a_context_both_read_the_very_same_ids(make) -> None:
    shown = view(context="none").rollouts(rollouts(make(7))).rows[0]
    assert shown.prompt.teacher_ids == shown.prompt.student_ids
    batch = collate([shown])
    assert batch.teacher is batch.student


def test_only_the_last_question_of_a_conversation_is_worded_and_the_system_prompt_stays() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And 3 and 1?"},
        {"role": "assistant", "content": "4"},
    ]
    shown = one({"messages": turns, "solution": "Three, four."})
    assert shown.startswith("<|turn|>system\nBe brief.<|end|>\n<|turn|>user\nHi<|end|>\n")
    assert shown.count("Three, four.") == 1
    assert shown.index("And 3 and 1?") < shown.index("Three, four.")


def test_teacher_and_student_may_have_other_templates_and_arguments() -> None:
    rows = rollouts(row(7), chat_template=THINKING, template_kwargs={"enable_thinking": False})
    own = view(
        context="none", chat_template=THINKING, template_kwargs={"enable_thinking": True}
    ).rollouts(rows)
    shown = told(own.rows[0])
    student = str(TOKENIZER.decode(list(rows[0].prompt.student_ids)))
    assert student == shown + "<think>\n\n</think>\n\n"


def test_another_problem_is_never_the_rows_own_and_follows_the_seed() -> None:
    rows = rollouts(*(row(number) for number in (*range(20, 30), 20, 20)))
    shown = [told(one) for one in view(context="other").rollouts(rows).rows]
    for number, text in zip((*range(20, 30), 20, 20), shown, strict=True):
        assert f"Count on from {number}:" not in text
        assert text.count("Count on from") == 1
        other = text.split("Count on from ")[1][:2]
        assert f"What is {other} and 1?" in text
    assert shown == [told(one) for one in view(context="other").rollouts(rows).rows]
    assert shown != [told(one) for one in view(context="other", seed=1).rollouts(rows).rows]


def test_the_only_problem_has_no_other() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:\d is the only problem among 2 row\(s\)"):
        view(context="other").rollouts(rollouts(row(3), row(3)))


def test_a_long_solution_is_cut_in_its_middle_and_nowhere_else() -> None:
    long = "first " + " ".join(f"word{number}" for number in range(300)) + " last"
    rows = rollouts(row(1, solution=long), row(2))
    whole = [told(one) for one in view().rollouts(rows).rows]
    shown = view(max_prompt_tokens=900).rollouts(rows)
    assert shown.cut == ["rows.jsonl:1"]
    assert shown.dropped == []
    cut, short = (told(one) for one in shown.rows)
    assert short == whole[1]
    head, tail = cut.split(" [...] ")
    assert whole[0].startswith(head)
    assert whole[0].endswith(tail)
    assert "first word0 " in head
    assert " last\n" in tail
    assert 840 < len(shown.rows[0].prompt.teacher_ids or ()) <= 900
    assert "What is 1 and 1?" in head


@given(st.integers(560, 1100), st.text(st.characters(codec="utf-8"), min_size=1, max_size=600))
def test_the_limit_is_kept_whatever_the_solution(limit: int, solution: str) -> None:
    if not solution.strip():
        return
    rows = rollouts(row(1, solution=solution))
    uncut = view().rollouts(rows).rows[0].prompt.teacher_ids or ()
    shown = view(max_prompt_tokens=limit, too_long="drop").rollouts(rows)
    assert bool(shown.cut) is (len(uncut) > limit)
    for one in shown.rows:
        assert len(one.prompt.teacher_ids or ()) <= limit


def test_a_prompt_that_is_too_long_without_its_solution_is_an_error_or_a_counted_drop() -> None:
    rows = rollouts(row(1), row(2, prompt=[{"role": "user", "content": "why " * 300}]))
    with pytest.raises(TooLongError, match=r"rows\.jsonl:2: the teacher's prompt is \d+ tokens"):
        view(max_prompt_tokens=700).rollouts(rows)
    shown = view(max_prompt_tokens=700, too_long="drop").rollouts(rows)
    assert shown.dropped == ["rows.jsonl:2"]
    assert len(shown.rows) == 1


def test_half_an_answer_is_no_answer() -> None:
    rows = rollouts(row(1, answer="1234567890" * 60))
    with pytest.raises(TooLongError):
        view(context="answer", max_prompt_tokens=600).rollouts(rows)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"solution": ""}, r"rows\.jsonl:1: column solution is empty; it must hold a text"),
        ({"solution": " \n"}, r"column solution is empty"),
        ({"solution": None}, r"column solution is empty"),
        ({"solution": ["a"]}, r"column solution is of type list; it must be a text"),
    ],
)
def test_a_solution_that_cannot_be_shown_names_row_and_column(columns, message) -> None:
    with pytest.raises(DataError, match=message):
        view().rollouts(rollouts(row(1, **columns)))


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"1: column worked is missing \(columns: answer, compl"):
        view(column="worked").rollouts(rollouts(row(1)))
    assert "Count back" in one(row(1), column="wrong_solution")


def test_a_row_that_gives_the_teacher_a_prompt_of_its_own_is_refused() -> None:
    rows = rollouts(row(1, teacher_prompt="2 and 2?"))
    with pytest.raises(DataError, match="gives the teacher a prompt already"):
        view().rollouts(rows)


UNOPENED = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"


def test_a_teacher_template_must_end_where_the_completion_starts() -> None:
    with pytest.raises(ConfigError, match=r"must open the assistant's turn \(add_generation_promp"):
        one(row(1), chat_template=UNOPENED)
    half = UNOPENED + "{% if add_generation_prompt %}<|turn|>{% endif %}"
    with pytest.raises(ConfigError, match="must open the assistant's turn"):
        one(row(1), chat_template=half)


BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [/Q]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        # Opened by the end of the question itself, as in the templates of Mistral and Llama 2.
        BRACKETS,
        # A thought that is opened for the answer and left out of the conversation shown later.
        UNOPENED + "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}",
        THINKING,
    ],
)
def test_templates_that_open_a_turn_in_their_own_way_are_fine(template: str) -> None:
    assert "Count on from 1" in one(row(1), chat_template=template)


def test_the_wording_can_be_replaced_and_must_show_what_matters(tmp_path: Path) -> None:
    path = tmp_path / "wording.j2"
    path.write_text("{{ row.answer }}|{{ text }}|{{ problem }}", encoding="utf-8")
    assert "\n2|Count on from 1: 2.|What is 1 and 1?<|end|>" in one(row(1), wording=path)
    for wrong, message in (
        ("{{ text }}", r"leaves out \{\{ problem \}\}"),
        ("{{ problem }}", r"leaves out \{\{ text \}\}"),
        ("{{ problem }}{{ text", "is not Jinja"),
        ("{{ problem }}{{ text }}{{ row.none_such }}", "cannot be rendered"),
    ):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            one(row(1), wording=path)
    path.write_text("{{ problem }} {{ text }}", encoding="utf-8")
    with pytest.raises(ConfigError, match="must end with the prompt itself"):
        one(plain(1), wording=path)
    with pytest.raises(ConfigError, match="cannot be read"):
        one(row(1), wording=tmp_path / "none.j2")


def test_a_row_cannot_run_anything_in_the_wording() -> None:
    text = "{{ 7 * 7 }} {% for a in b %}"
    assert text in one(row(1, solution=text))


def test_the_end_of_a_turn_is_a_label_of_both_views_though_it_is_the_padding_too() -> None:
    tokenizer = byte_tokenizer(pad_token=TURN_END)
    tokenizer.eos_token = TURN_END
    rows = [Formatter(tokenizer).rollout(row(5), "r")]
    batch = collate(TeacherView(tokenizer=tokenizer).rollouts(rows).rows)
    assert batch.labels[-1] == tokenizer.pad_token_id == tokenizer.eos_token_id
    assert batch.loss_mask.all()
    assert len(batch.teacher.predicts) == len(batch.student.predicts) == len(batch.labels)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Joins a and b, and b and c: across the seam of prompt and completion, too."""
    letters = ["a", "b", "c", "</s>", "ab", "bc", "abc"]
    vocabulary = {letter: at for at, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("ab", "c"), ("b", "c")]))
    backend.pre_tokenizer = pre_tokenizers.Split("x", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=EOS)


@given(st.text("abc", min_size=1, max_size=6), st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_the_sampled_ids_are_what_both_read_though_their_text_would_be_joined(
    prompt: str, sampled: list[int]
) -> None:
    tokenizer = merging_tokenizer()
    start = Formatter(tokenizer).prompt({"prompt": prompt, "solution": "cab"}, "r")
    rollout = Rollout(prompt=start, completion_ids=tuple(sampled), source="student")
    path = Path(__file__).with_name("merging.j2")
    shown = TeacherView(tokenizer=tokenizer, wording=path).rollouts([rollout]).rows[0]
    batch = collate([shown])
    for one in (batch.student, batch.teacher):
        assert one.input_ids[-len(sampled) :].tolist() == sampled
    assert batch.labels.tolist() == sampled
    assert tokenizer.decode(list(shown.prompt.teacher_ids or ())) == "cab" + prompt


BRIEF = wording_file("brief")


@pytest.mark.parametrize("make", [row, plain])
@pytest.mark.parametrize("context", COLUMNS)
def test_the_brief_wording_shows_the_same_in_fewer_words(make, context) -> None:
    before = rollouts(make(27), make(38))
    after = view(context=context, wording=BRIEF).rollouts(before).rows
    longer = view(context=context).rollouts(before).rows
    for old, new, long, number, other in zip(
        before, after, longer, (27, 38), (38, 27), strict=True
    ):
        column = COLUMNS[context]
        source = other if context == "other" else number
        if column is None:
            assert new.prompt.teacher_ids == old.prompt.student_ids
            continue
        assert told(new).count(str(make(source)[column])) == 1
        assert len(new.prompt.teacher_ids or ()) < len(long.prompt.teacher_ids or ())
        assert ("27" in told(new) and "38" in told(new)) == (context == "other")


def test_the_brief_wording_of_a_plain_prompt_is_a_line_before_the_problem() -> None:
    def brief(context: str) -> str:
        rows = rollouts(plain(27), plain(38))
        return told(view(context=context, wording=BRIEF).rollouts(rows).rows[0])

    assert brief("solution") == "Solution: Count on from 27: 28.\nProblem: 27 + 1 ="
    assert brief("other") == "Other: 38 + 1 =Count on from 38: 39.\nProblem: 27 + 1 ="
    assert brief("wrong") == "Solution: Count back from 27: 26.\nProblem: 27 + 1 ="


def test_a_wording_goes_by_its_name_or_by_its_path(tmp_path: Path) -> None:
    assert wording_file("brief").is_file()
    assert wording_file("brief").parent == wording_file("privileged").parent
    assert wording_file(str(tmp_path / "own.j2")) == tmp_path / "own.j2"
    assert wording_file("unheard_of") == Path("unheard_of")
    assert wording_file("~/own.j2").is_absolute()
