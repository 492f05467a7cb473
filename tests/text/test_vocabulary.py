import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import VOCABULARY, byte_tokenizer
from tutelage.core.errors import ModelError
from tutelage.text import match


def with_specials(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def test_one_tokenizer_shares_everything() -> None:
    found = match(byte_tokenizer(), byte_tokenizer(), VOCABULARY, VOCABULARY)
    assert (found.num_real, found.student_excluded, found.teacher_excluded) == (VOCABULARY, 0, 0)


@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(264, 272), (272, 264), (260, 300)])
def test_heads_padded_differently_share_the_real_entries(
    student_rows: int, teacher_rows: int
) -> None:
    found = match(byte_tokenizer(), byte_tokenizer(), student_rows, teacher_rows)
    assert found.num_real == VOCABULARY
    assert found.student_excluded == student_rows - VOCABULARY
    assert found.teacher_excluded == teacher_rows - VOCABULARY


def test_special_tokens_of_one_side_are_excluded_like_padding() -> None:
    more = with_specials("<think>", "<tool>")
    for student, teacher in ((byte_tokenizer(), more), (more, byte_tokenizer())):
        assert match(student, teacher, 264, 264).num_real == VOCABULARY


def test_special_tokens_that_differ_end_what_is_shared() -> None:
    found = match(with_specials("<a>", "<b>"), with_specials("<a>", "<c>"), 264, 264)
    assert found.num_real == VOCABULARY + 1


def test_different_tokenizers_are_refused_with_advice() -> None:
    other = byte_tokenizer()
    other.add_tokens(["whole", "words"])
    swapped = byte_tokenizer()
    state = (
        swapped.backend_tokenizer.to_str().replace('"A":32', '"A":33').replace('"B":33', '"B":32')
    )
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=type(swapped.backend_tokenizer).from_str(state)
    )
    with pytest.raises(
        ModelError, match=r"student's token 32 is 'A' and the teacher's is 'B'; both"
    ):
        match(byte_tokenizer(), swapped, 264, 264)


def test_a_head_smaller_than_its_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"teacher's head has 200 entries and its tokenizer 260"):
        match(byte_tokenizer(), byte_tokenizer(), 260, 200)
