import pytest

from tests.tiny_models import EOS, TURN_END, byte_tokenizer
from tutelage.core.errors import ConfigError, DataError
from tutelage.text import Formatter, TooLongError, collate

NAME = "chat.jsonl line 7"
TOKENIZER = byte_tokenizer()
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So soon?"},
]
OPENED = "<|turn|>user\nHi<|end|>\n<|turn|>assistant\n"


def shown(ids: tuple[int, ...] | None) -> str:
    return str(TOKENIZER.decode(list(ids or ()), skip_special_tokens=False))


def test_plain_strings_are_prompt_completion_and_eos() -> None:
    rollout = Formatter(TOKENIZER).rollout({"prompt": "2+2=", "completion": "4"}, NAME)
    assert shown(rollout.prompt.student_ids) == "2+2="
    assert shown(rollout.completion_ids) == "4" + EOS
    assert rollout.trained is None
    assert not rollout.truncated
    assert rollout.prompt.name == NAME


def test_a_conversational_completion_ends_with_the_turn_and_no_white_space() -> None:
    row = {"prompt": TALK[:1], "completion": TALK[1:2]}
    rollout = Formatter(TOKENIZER).rollout(row, NAME)
    assert shown(rollout.prompt.student_ids) == OPENED
    assert shown(rollout.completion_ids) == "Hello." + TURN_END


def test_a_conversation_may_be_completed_by_a_string() -> None:
    row = {"prompt": TALK[:1], "completion": "Hello."}
    as_messages = {"prompt": TALK[:1], "completion": TALK[1:2]}
    formatter = Formatter(TOKENIZER)
    assert formatter.rollout(row, NAME).completion_ids == (
        formatter.rollout(as_messages, NAME).completion_ids
    )


def test_the_last_answer_of_messages_is_trained_behind_all_before_it() -> None:
    rollout = Formatter(TOKENIZER).rollout({"messages": TALK}, NAME)
    assert shown(rollout.prompt.student_ids).startswith(OPENED + "Hello.<|end|>\n<|turn|>user")
    assert shown(rollout.completion_ids) == "So soon?" + TURN_END
    assert rollout.trained is None


def test_every_answer_is_trained_by_setting_and_nothing_the_user_said() -> None:
    rollout = Formatter(TOKENIZER, trained_turns="all").rollout({"messages": TALK}, NAME)
    assert shown(rollout.prompt.student_ids) == OPENED
    trained = zip(rollout.completion_ids, rollout.trained or (), strict=True)
    assert shown(tuple(at for at, kept in trained if kept)) == "Hello.<|end|>So soon?<|end|>"


def test_the_end_of_a_turn_is_trained_though_it_is_the_padding_too() -> None:
    tokenizer = byte_tokenizer(pad_token=TURN_END)
    tokenizer.eos_token = TURN_END
    rollout = Formatter(tokenizer).rollout({"messages": TALK}, NAME)
    batch = collate([rollout])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == batch.labels[-1]
    assert batch.loss_mask[-1]


def test_a_template_without_an_end_of_turn_gets_eos() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rollout = Formatter(TOKENIZER, chat_template=template).rollout({"messages": TALK}, NAME)
    assert shown(rollout.completion_ids) == "So soon?\n" + EOS


def test_a_text_is_trained_from_its_second_token() -> None:
    rollout = Formatter(TOKENIZER).rollout({"text": "abc"}, NAME)
    assert shown(rollout.prompt.student_ids) == "a"
    assert shown(rollout.completion_ids) == "bc" + EOS


def test_a_prompt_is_what_a_rollout_is_asked_with() -> None:
    formatter = Formatter(TOKENIZER)
    rows = [
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": TALK[:1], "completion": TALK[1:2]},
        {"messages": TALK},
    ]
    for row in rows:
        assert formatter.prompt(row, NAME) == formatter.rollout(row, NAME).prompt
    asked = {"messages": TALK[:3]}
    assert formatter.prompt(asked, NAME).student_ids == (
        formatter.prompt({"messages": TALK}, NAME).student_ids
    )


def test_a_cut_completion_is_marked_and_has_no_eos() -> None:
    row = {"prompt": "Count: ", "completion": "123"}
    whole = Formatter(TOKENIZER, max_completion_tokens=4).rollout(row, NAME)
    cut = Formatter(TOKENIZER, max_completion_tokens=3).rollout(row, NAME)
    assert (shown(whole.completion_ids), whole.truncated) == ("123" + EOS, False)
    assert (shown(cut.completion_ids), cut.truncated) == ("123", True)


def test_a_long_prompt_is_refused_or_dropped_and_counted_but_never_cut() -> None:
    rows = [
        ({"prompt": "short", "completion": "!"}, "line 1"),
        ({"prompt": "much too long", "completion": "!"}, "line 2"),
    ]
    strict = Formatter(TOKENIZER, max_prompt_tokens=5)
    with pytest.raises(
        TooLongError, match=r"line 2: the prompt is 13 tokens; .* at most 5\. Raise"
    ):
        strict.rollouts(rows)
    for make in (strict.rollout, strict.prompt):
        with pytest.raises(TooLongError):
            make(*rows[1])
    lenient = Formatter(TOKENIZER, max_prompt_tokens=5, too_long="drop")
    for formatted in (lenient.rollouts(rows), lenient.prompts(rows)):
        assert len(formatted.rows) == 1
        assert formatted.dropped == ["line 2"]


def test_the_teacher_may_read_its_own_prompt_before_the_same_completion() -> None:
    row = {"prompt": TALK[:1], "completion": "Hello.", "solution": "greet"}
    template = "Secret: {{ row.solution }}. {{ messages[0].content }} -> "
    rollout = Formatter(TOKENIZER, teacher_template=template).rollout(row, NAME)
    assert shown(rollout.prompt.student_ids) == OPENED
    assert shown(rollout.prompt.teacher_ids) == "Secret: greet. Hi -> "
    batch = collate([rollout])
    own = batch.teacher.input_ids[batch.teacher.predicts + 1]
    assert own.tolist() == batch.labels.tolist() == list(rollout.completion_ids)


def test_a_column_may_hold_the_teachers_prompt() -> None:
    plain = {"prompt": "2+2=", "completion": "4", "teacher_prompt": "two and two: "}
    rollout = Formatter(TOKENIZER).rollout(plain, NAME)
    assert shown(rollout.prompt.teacher_ids) == "two and two: "
    chat = {"messages": TALK, "teacher_prompt": TALK[:1]}
    assert shown(Formatter(TOKENIZER).rollout(chat, NAME).prompt.teacher_ids) == OPENED


def test_the_tokens_of_the_seam_are_those_the_model_is_prompted_with() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["=4"])
    rollout = Formatter(tokenizer).rollout({"prompt": "2+2=", "completion": "4"}, NAME)
    assert (
        rollout.prompt.student_ids
        == Formatter(TOKENIZER).prompt({"prompt": "2+2="}, NAME).student_ids
    )
    assert shown(rollout.completion_ids) == "4" + EOS


def test_a_template_that_rewrites_the_prompt_is_refused_with_advice() -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    formatter = Formatter(TOKENIZER, chat_template=template)
    with pytest.raises(
        DataError, match=r"line 7: the rendered prompt is not how .* template_kwargs"
    ):
        formatter.rollout({"messages": TALK}, NAME)


def test_a_template_that_hides_old_answers_cannot_train_every_answer() -> None:
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n"
        "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    every = Formatter(TOKENIZER, chat_template=template, trained_turns="all")
    with pytest.raises(DataError, match=r"not how|differently once .* trained_turns: last"):
        every.rollout({"messages": TALK}, NAME)
    last = Formatter(TOKENIZER, chat_template=template).rollout({"messages": TALK}, NAME)
    assert shown(last.completion_ids) == "So soon?" + TURN_END


BAD_ROWS = [
    ({"question": "?"}, r"columns question; it must be prompt and completion, messages, or text"),
    ({"prompt": "x"}, r"column completion is missing \(columns: prompt\)"),
    ({"prompt": "", "completion": "x"}, r"column prompt is empty"),
    ({"prompt": "x", "completion": ""}, r"column completion is empty"),
    ({"prompt": "x", "completion": 4}, r"column completion is of type int; it must be a text"),
    ({"prompt": 4, "completion": "x"}, r"column prompt is of type int"),
    ({"prompt": TALK[:1]}, r"column completion is missing"),
    ({"messages": []}, r"column messages is empty"),
    ({"messages": "hello"}, r"column messages is of type str"),
    ({"messages": [{"role": "user"}]}, r"column messages is a list with something else in it"),
    ({"messages": TALK[:3]}, r"ends with a message of user"),
    ({"messages": TALK[1:2]}, r"begins with the answer"),
    ({"prompt": TALK[:1], "completion": " "}, r"the answer is ' ', without a token"),
    ({"text": ""}, r"column text is empty"),
    ({"prompt": "x", "completion": "y", "teacher_prompt": ""}, r"column teacher_prompt is empty"),
]


@pytest.mark.parametrize(("row", "complaint"), BAD_ROWS, ids=lambda value: str(value)[:40])
def test_a_bad_row_is_refused_with_its_name_and_column(row: dict, complaint: str) -> None:
    with pytest.raises(DataError, match=r"chat\.jsonl line 7.*" + complaint):
        Formatter(TOKENIZER).rollout(row, NAME)


def test_a_conversation_needs_a_chat_template() -> None:
    with pytest.raises(ConfigError, match=r"has no chat template; it must have one\. Set chat_"):
        Formatter(byte_tokenizer(None)).rollout({"messages": TALK}, NAME)


def test_a_template_that_raises_names_the_row() -> None:
    template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"line 7: the chat template refuses .*no system role"):
        Formatter(TOKENIZER, chat_template=template).rollout({"messages": TALK}, NAME)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="EOS token is missing"):
        Formatter(tokenizer).rollout({"prompt": "a", "completion": "b"}, NAME)
