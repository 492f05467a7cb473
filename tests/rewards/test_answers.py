"""Answers, forms and sums: what is found in a text, and what it earns."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.rewards.rollouts import judged, rewards_of, rollout_of
from tutelage.core.errors import DataError
from tutelage.rewards import (
    Boxed,
    ExactAnswerSettings,
    ExtractionSettings,
    FormatSettings,
    LastLine,
    Normalisation,
    Pattern,
    RewardSettings,
    Tag,
    WeightedReward,
    WeightedSumSettings,
    Whole,
    make_verifier,
)

BOXED = Boxed()


@pytest.mark.parametrize(
    ("extraction", "text", "answer"),
    [
        (Whole(), "  12 \n", "12"),
        (Whole(), " \n", None),
        (LastLine(), "3 + 4\n= 7\n\n", "= 7"),
        (LastLine(after="="), "3 + 4 = 6\n= 7", "7"),
        (LastLine(after="####"), "#### 6\n7", None),
        (LastLine(), "", None),
        (BOXED, r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (BOXED, r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (BOXED, r"\boxed{1", None),
        (BOXED, r"\boxed{1} and \boxed{2", None),
        (BOXED, r"\boxed{}", None),
        (Pattern(pattern=r"answer is (\S+)"), "answer is 3, no, answer is 4", "4"),
        (Pattern(pattern=r"\d+"), "1 22 333", "333"),
        (Pattern(pattern=r"(a)|b"), "b", None),
        (Tag(), "<answer>1</answer> <answer> 2\n</answer>", "2"),
        (Tag(name="a"), "<answer>1</answer>", None),
        (Tag(), "</answer>1<answer>", None),
        (Tag(), "<answer>1", None),
    ],
)
def test_the_last_answer_of_the_asked_form_is_found(
    extraction: ExtractionSettings, text: str, answer: str | None
) -> None:
    assert extraction.answer_in(text) == answer


EVERY_EXTRACTION = [Whole(), LastLine(after="="), BOXED, Pattern(pattern=r"=(.*)"), Tag()]


@given(st.text(st.sampled_from("<>/answer{}\\boxed=\n 1"), max_size=60))
def test_no_text_breaks_an_extraction_and_an_answer_is_never_empty(text: str) -> None:
    for extraction in EVERY_EXTRACTION:
        answer = extraction.answer_in(text)
        assert answer is None or (answer and answer == answer.strip() and answer in text)


@pytest.mark.parametrize(
    ("answer", "others"),
    [
        ("12", ["12.", " 12 ", "12.0", "+12", "$12", "012"]),
        ("1200", ["1,200", "$1,200.00"]),
        ("-0.5", ["-.5", "-0.50"]),
        ("0", ["-0", "0.00", "+0"]),
        ("New York", ["new  york.", "NEW\nYORK"]),
    ],
)
def test_answers_that_differ_in_spelling_alone_are_the_same(answer: str, others: list[str]) -> None:
    settings = ExactAnswerSettings(extract=Whole())
    assert set(rewards_of(settings, {"answer": answer}, answer, *others)) == {1.0}


@pytest.mark.parametrize(
    ("answer", "others"),
    [
        ("12", ["13", "-12", "1 2", "120", "1,2", "12 apples", "twelve", "\uff11\uff12", ""]),
        ("-0.5", ["0.5", "-5"]),
        ("1.5", ["1,5", "15"]),
        ("yes", ["no", "yes no", "ye s"]),
    ],
)
def test_answers_that_differ_in_substance_are_not(answer: str, others: list[str]) -> None:
    settings = ExactAnswerSettings(extract=Whole())
    assert set(rewards_of(settings, {"answer": answer}, *others)) == {0.0}


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_every_spelling_of_a_number_is_that_number_and_no_other(value: int, places: int) -> None:
    form = Normalisation().of(str(value))
    zeros = f".{'0' * places}" if places else ""
    assert Normalisation().of(f"{value:,}{zeros}") == form
    assert Normalisation().of(str(value + 1)) != form


def test_without_normalisation_only_the_very_same_text_is_right() -> None:
    strict = Normalisation(
        ignore_case=False, ignore_space=False, ignore_final_stop=False, compare_numbers=False
    )
    settings = ExactAnswerSettings(extract=Whole(), normalise=strict)
    texts = ["A  b.", "a  b.", "A b.", "A  b"]
    assert rewards_of(settings, {"answer": "A  b."}, *texts) == [1, 0, 0, 0]
    assert rewards_of(settings, {"answer": "1.0"}, "1") == [0]


def test_any_of_several_accepted_answers_will_do_and_numbers_are_answers() -> None:
    settings = ExactAnswerSettings(column="gold")
    assert rewards_of(settings, {"gold": ["UK", "Britain"]}, "britain", "France") == [1, 0]
    assert rewards_of(settings, {"gold": 7}, "so it is\n7", "7\nor 8") == [1, 0]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"result": "7"}, "has no column 'answer'; it must be one of result"),
        ({}, "none at all"),
        ({"answer": None}, "has nothing in column 'answer'"),
        ({"answer": ""}, "has nothing in column 'answer'"),
        ({"answer": {"a": 1}}, "has a dict in column 'answer'"),
        ({"answer": True}, "has a bool in column 'answer'"),
    ],
)
def test_a_row_without_an_answer_is_named(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as caught:
        judged(ExactAnswerSettings(), row, "7")
    assert str(caught.value).startswith("rows.jsonl:7 ")


def test_as_many_texts_as_rollouts_are_needed() -> None:
    with pytest.raises(DataError, match="texts has 2 entries; it must be 1"):
        make_verifier(ExactAnswerSettings()).judge([rollout_of({"answer": "1"})], ["1", "2"])


def test_a_form_is_kept_whole_or_not_at_all() -> None:
    settings = FormatSettings(tags=("think", "answer"), pattern=r"<think>.*</answer>")
    texts = [
        "<think>1</think> <answer>2</answer>\n",
        "<answer>2</answer> <think>1</think>",
        "<think>1</think> <answer>2</answer> more",
        "<think>1</think> <answer>2</answer><answer>3</answer>",
        "<think>1 <answer>2</answer></think>",
        "<think>1</think>",
        "",
    ]
    verdicts = judged(settings, {}, *texts)
    assert [verdict.reward for verdict in verdicts] == [1, 0, 0, 0, 0, 0, 0]
    assert verdicts[1].note == "fails pattern, tags"
    assert verdicts[2].parts == {"pattern": 0, "tags": 1, "ended": 1}


def test_a_completion_that_was_cut_or_says_nothing_has_not_ended() -> None:
    verifier = make_verifier(FormatSettings())
    rollouts = [rollout_of({}), rollout_of({}, truncated=True), rollout_of({}, length=0)]
    assert [v.reward for v in verifier.judge(rollouts, ["a", "a", ""])] == [1, 0, 0]
    lenient = make_verifier(FormatSettings(must_end=False, pattern="a*"))
    assert [v.reward for v in lenient.judge(rollouts, ["a", "a", ""])] == [1, 1, 1]


def test_a_sum_adds_what_its_parts_say_and_shows_them() -> None:
    settings = WeightedSumSettings(
        parts={
            "right": WeightedReward(weight=1.0, reward=ExactAnswerSettings()),
            "form": WeightedReward(weight=0.1, reward=FormatSettings(pattern=r"\d")),
            "shout": WeightedReward(
                weight=-2.0, reward=FormatSettings(pattern=".*!", must_end=False)
            ),
        }
    )
    verdicts = judged(settings, {"answer": "7"}, "7", "8", "so\n7", "7!")
    assert [verdict.reward for verdict in verdicts] == [1.1, 0.1, 1.0, -2.0]
    assert verdicts[0].parts["right"] == verdicts[0].parts["form"] == 1
    assert verdicts[0].parts["right.found"] == 1
    assert "right: answered '8'" in verdicts[1].note


ADAPTER: TypeAdapter[RewardSettings] = TypeAdapter(RewardSettings)


def test_settings_are_read_by_their_kind() -> None:
    tree = {
        "kind": "weighted_sum",
        "parts": {
            "a": {"weight": 1, "reward": {"kind": "exact_answer", "extract": {"kind": "boxed"}}},
            "b": {"weight": 0.1, "reward": {"kind": "format", "tags": ["think"]}},
        },
    }
    settings = ADAPTER.validate_python(tree)
    assert ADAPTER.validate_python(ADAPTER.dump_python(settings, mode="json")) == settings
    make_verifier(settings)


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"kind": "format", "must_end": False}, "pattern, tags and must_end are all off"),
        ({"kind": "format", "pattern": "("}, r"must be a regular expression"),
        ({"kind": "format", "tags": ["<a>"]}, "tags"),
        ({"kind": "exact_answer", "extract": {"kind": "regex", "pattern": "["}}, "regular"),
        ({"kind": "exact_answer", "colum": "a"}, "colum"),
        ({"kind": "weighted_sum", "parts": {}}, "parts"),
        ({"kind": "taste"}, "taste"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tree: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ADAPTER.validate_python(tree)
