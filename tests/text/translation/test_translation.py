"""One text in two tokenizers: bytes, spans, special tokens and whole batches."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import BOS, EOS, TURN_END, TURN_START, byte_tokenizer
from tests.tiny_tokenizers import byte_level, prefixed_unigram, sentence_piece, word_piece
from tutelage.core.errors import ConfigError, ModelError
from tutelage.core.records import Prompt, Rollout
from tutelage.text import collate
from tutelage.text.translation import (
    Side,
    Spelling,
    Translator,
    paired_specials,
    shared_words,
    spans_of,
)

KINDS = {
    "bytes": byte_tokenizer,
    "byte-level": byte_level,
    "larger byte-level": lambda: byte_level(420, other=True),
    "sentence-piece": sentence_piece,
    "prefixed": prefixed_unigram,
}
SPELLINGS = {name: Spelling(make()) for name, make in KINDS.items()}
every_kind = pytest.mark.parametrize("kind", KINDS)
texts = st.text(max_size=40) | st.text(alphabet="the acr.,\n\t 12é語🙂", max_size=60)


def translator(student: str, teacher: str) -> Translator:
    mine, theirs = KINDS[student](), KINDS[teacher]()
    specials = paired_specials(Side(mine), Side(theirs), conversations=True)
    return Translator(SPELLINGS[student], SPELLINGS[teacher], specials)


def ends(sizes: Sequence[int]) -> list[int]:
    return torch.tensor(sizes, dtype=torch.long).cumsum(0).tolist()


@every_kind
@given(said=st.binary(max_size=30) | texts.map(str.encode))
@example(said="a\u2581b".encode())
@example(said=b"<s></s><|end|><bos><eos>")
@example(said="e\u0301 \u1100\u1161".encode())
@example(said=b"\xf0\x9f\x99")
def test_what_is_encoded_says_exactly_the_bytes_it_was_made_from(kind: str, said: bytes) -> None:
    spelling = SPELLINGS[kind]
    ids = spelling.encode(said)
    assert ids is not None
    assert spelling.says(ids) == said
    assert all(spelling.sizes(ids))
    assert not any(spelling.is_special(token) for token in ids)


@every_kind
@given(text=texts)
def test_the_bytes_of_tokens_are_what_the_tokenizer_decodes_to(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    ids = SPELLINGS[kind].encode(text.encode())
    decoded = tokenizer.backend_tokenizer.decode([5, *(ids or ())], skip_special_tokens=False)
    alone = tokenizer.backend_tokenizer.decode([5], skip_special_tokens=False)
    if "\ufffd" not in decoded and "\u2581" not in text and alone:
        assert decoded.removeprefix(alone).encode() == text.encode()


def test_a_normaliser_costs_the_words_it_would_change_and_no_others() -> None:
    from tokenizers import normalizers

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    spelling = Spelling(tokenizer)
    ids = spelling.encode(b"the teacher READS the text")
    assert ids is not None
    assert spelling.says(ids) == b"the teacher READS the text"
    whole = SPELLINGS["byte-level"].encode(b" READS")
    assert whole is not None
    assert len(ids) < len(b"the teacher READS the text") / 2 + len(whole)


@every_kind
def test_every_token_says_what_the_tokenizer_decodes_it_to(kind: str) -> None:
    tokenizer, spelling = KINDS[kind](), SPELLINGS[kind]
    backend, number = tokenizer.backend_tokenizer, 0
    (begin,) = spelling.encode(b"a") or ()
    for token in range(spelling.num_entries):
        if spelling.is_special(token):
            continue
        said = backend.decode([begin, token], skip_special_tokens=False).removeprefix("a")
        # Half a letter is decoded to nothing in particular.
        if "\ufffd" not in said:
            assert spelling.says([token]) == said.encode()
            number += 1
    assert number > 100


def test_a_tokenizer_that_puts_a_space_in_front_does_not_in_the_middle_of_a_text() -> None:
    from tokenizers import normalizers, pre_tokenizers

    (word,) = SPELLINGS["prefixed"].encode(b"teach") or ()
    assert prefixed_unigram().convert_ids_to_tokens(word) == "teach"
    spaced, prepended = byte_level(), sentence_piece()
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True),
        ]
    )
    prepended.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    for text in (b"teacher", b"reads the"):
        assert Spelling(spaced).encode(text) == SPELLINGS["byte-level"].encode(text)
        assert Spelling(prepended).encode(text) == SPELLINGS["sentence-piece"].encode(text)


def test_the_name_of_a_special_token_costs_the_words_around_it_nothing() -> None:
    spelling = SPELLINGS["byte-level"]
    apart = [spelling.encode(part) or [] for part in (b"teacher", EOS.encode(), b"teacher")]
    assert spelling.encode(b"teacher" + EOS.encode() + b"teacher") == [
        *apart[0],
        *apart[1],
        *apart[2],
    ]
    assert len(apart[0]) < len(b"teacher")


def test_tokenizers_that_say_no_bytes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"decoder is WordPiece; it must be byte-level"):
        Spelling(word_piece())


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=12)


@given(sizes=sizes, cuts=st.sets(st.integers(1, 47)))
def test_spans_are_the_smallest_on_whose_ends_both_agree(sizes: list[int], cuts: set[int]) -> None:
    total = sum(sizes)
    places = [0, *sorted(cut for cut in cuts if cut < total), total]
    other = [b - a for a, b in pairwise(places)]
    spans = spans_of(sizes, other)
    common = sorted(set(ends(sizes)) & set(places[1:]))
    assert len(spans) == len(common)
    mine, theirs = [0, *ends(sizes)], [0, *ends(other)]
    at_mine = at_theirs = 0
    for span, end in zip(spans, common, strict=True):
        # Nothing between spans, nothing twice, and both end where the text is cut.
        assert (span.student_first, span.teacher_first) == (at_mine, at_theirs)
        at_mine += span.student_count
        at_theirs += span.teacher_count
        assert mine[at_mine] == theirs[at_theirs] == end
    assert (at_mine, at_theirs) == (len(sizes), len(other))


def test_tokens_that_say_nothing_are_in_no_span_nor_inside_one() -> None:
    (span,) = spans_of([0, 2, 0], [1, 1])
    assert (span.student_first, span.student_count, span.teacher_count) == (1, 1, 2)
    # The second text is said with a silent token in view that the other side has not seen.
    spans = spans_of([2, 1, 0, 1, 1], [2, 2, 1])
    assert [(s.student_first, s.teacher_first) for s in spans] == [(0, 0), (4, 2)]
    assert spans_of([0, 0], []) == []


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("teacher", KINDS)
@given(text=texts)
def test_both_sides_of_every_group_say_the_same_bytes(
    student: str, teacher: str, text: str
) -> None:
    ids = SPELLINGS[student].encode(text.encode())
    assert ids is not None
    said = translator(student, teacher).completion(ids)
    groups = [
        (
            SPELLINGS[student].says(ids[s.student_first : s.student_first + s.student_count]),
            SPELLINGS[teacher].says(
                said.teacher_ids[s.teacher_first : s.teacher_first + s.teacher_count]
            ),
        )
        for s in said.spans
    ]
    assert all(mine == theirs for mine, theirs in groups)
    assert b"".join(mine for mine, _ in groups) == text.encode()
    if student == teacher and said.teacher_ids == tuple(ids):
        assert all(span.is_single for span in said.spans)


@given(ids=st.lists(st.integers(0, 333), max_size=25))
def test_whatever_a_student_draws_is_put_into_the_teachers_tokens(ids: list[int]) -> None:
    both = translator("byte-level", "sentence-piece")
    said = both.completion(ids)
    mine, theirs = SPELLINGS["byte-level"], SPELLINGS["sentence-piece"]
    assert theirs.says(said.teacher_ids) == mine.says(ids)
    specials = [both.specials[t] for t in ids if t in both.specials]
    assert [t for t in said.teacher_ids if theirs.is_special(t)] == specials
    for span in said.spans:
        places = range(span.student_first, span.student_first + span.student_count)
        if span.student_count > 1:
            assert not any(mine.is_special(ids[at]) for at in places)


def special(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    found = tokenizer.convert_tokens_to_ids(name)
    assert isinstance(found, int)
    return found


def test_ends_are_paired_with_ends_and_names_with_names() -> None:
    mine, theirs = Side(byte_level()), Side(sentence_piece())
    turn, eos = special(byte_level(), TURN_END), special(byte_level(), EOS)
    stop, end = (special(sentence_piece(), name) for name in ("<stop>", "<eos>"))
    assert paired_specials(mine, theirs, conversations=True) == {turn: stop, eos: end}
    assert paired_specials(mine, theirs, conversations=False) == {eos: end}
    chosen = paired_specials(mine, theirs, conversations=False, given={EOS: "<stop>"})
    assert chosen == {eos: stop}
    chosen = paired_specials(mine, theirs, conversations=True, given={TURN_END: "<eos>"})
    assert chosen == {turn: end, eos: end}
    same = paired_specials(mine, Side(byte_level(420)), conversations=True)
    assert len(same) == 4
    # What is taken by choice is not given away again by its name.
    taken = paired_specials(mine, Side(byte_level(420)), conversations=False, given={EOS: BOS})
    assert set(taken) == {special(byte_level(), name) for name in (EOS, TURN_START, TURN_END)}
    with pytest.raises(ConfigError, match=r"special_tokens names '<nope>' of the teacher"):
        paired_specials(mine, theirs, conversations=False, given={EOS: "<nope>"})


def test_a_turn_that_ends_with_the_students_eos_ends_as_the_teachers_turn_does() -> None:
    student = byte_level()
    student.chat_template = str(student.chat_template).replace(TURN_END, EOS)
    found = paired_specials(Side(student), Side(sentence_piece()), conversations=True)
    assert found == {special(student, EOS): special(sentence_piece(), "<stop>")}


def test_shared_words_are_pairs_of_the_same_bytes() -> None:
    mine, theirs = SPELLINGS["byte-level"], SPELLINGS["sentence-piece"]
    words = shared_words(mine, theirs, {331: 401})
    pairs = list(zip(words.student_ids.tolist(), words.teacher_ids.tolist(), strict=True))
    assert len({m for m, _ in pairs}) == len({t for _, t in pairs}) == len(pairs) > 256
    assert all(mine.says([m]) == theirs.says([t]) for m, t in pairs)
    assert (331, 401) in pairs
    for ids, rest, size in (
        (words.student_ids, words.student_rest, mine.num_entries),
        (words.teacher_ids, words.teacher_rest, theirs.num_entries),
    ):
        assert sorted([*ids.tolist(), *rest.tolist()]) == list(range(size))
    # SentencePiece has a letter and the escape of its byte: the letter is the word.
    letter = sentence_piece().get_vocab()["a"]
    assert theirs.ids_of[b"a"] == letter


def rollout(text: bytes, prompt: int, **fields: object) -> Rollout:
    ids = SPELLINGS["byte-level"].encode(text)
    assert ids is not None
    # Prompts of other lengths on the two sides.
    own = Prompt(student_ids=(7,) * prompt, teacher_ids=(9,) * (2 * prompt + 1))
    return Rollout(prompt=own, completion_ids=(*ids, 331), **fields)


def test_a_batch_is_translated_row_by_row_with_rows_that_predict_the_groups() -> None:
    rows = [
        rollout(b"the teacher reads", 2),
        rollout("caf\u00e9 123 \u8a9e".encode(), 1),
        rollout(b" and", 3),
    ]
    batch = collate(rows)
    both = translator("byte-level", "sentence-piece")
    found = both.batch(batch)
    assert found.batch is not None
    teacher, groups = found.batch, found.groups
    theirs, mine = SPELLINGS["sentence-piece"], SPELLINGS["byte-level"]
    # What is predicted is the token behind the position that predicts it, on both sides.
    assert torch.equal(teacher.teacher.input_ids[teacher.teacher.predicts + 1], teacher.labels)
    columns = [getattr(groups, name).tolist() for name in vars(groups)]
    for first, count, their_first, their_count in zip(*columns, strict=True):
        says = mine.says(batch.labels[first : first + count].tolist())
        assert says == theirs.says(teacher.labels[their_first : their_first + their_count].tolist())
        row = batch.row_of[first]
        assert row == batch.row_of[first + count - 1] == teacher.row_of[their_first]
    for row, one in enumerate(rows):
        own = teacher.teacher.input_ids[slice(*teacher.teacher.row_starts[row : row + 2].tolist())]
        completion = both.completion(one.completion_ids).teacher_ids
        assert own.tolist() == [*(one.prompt.teacher_ids or ()), *completion]
        places = teacher.teacher.position_ids[
            slice(*teacher.teacher.row_starts[row : row + 2].tolist())
        ]
        assert places.tolist() == list(range(len(own)))
    coverage = found.coverage
    assert coverage.num_tokens == coverage.num_grouped == len(batch.labels)
    assert coverage.num_bytes == coverage.num_aligned_bytes == 17 + 13 + 4
    assert (coverage.num_rows, coverage.num_lost_rows) == (3, 0)


def test_groups_of_tokens_that_are_not_all_trained_count_for_nothing() -> None:
    text = "unthinkable caf\u00e9s: \u8a9e".encode()
    row = rollout(text, 2)
    whole = translator("byte-level", "sentence-piece").batch(collate([row]))
    number = len(row.completion_ids)
    assert int(whole.groups.student_count.max()) > 1
    for left_out in range(number):
        trained = tuple(at != left_out for at in range(number))
        part = collate([rollout(text, 2, trained=trained)])
        found = translator("byte-level", "sentence-piece").batch(part)
        counts = whole.groups.student_count
        hit = (whole.groups.student_first <= left_out) & (
            left_out < whole.groups.student_first + counts
        )
        assert int(hit.sum()) == 1
        assert found.coverage.num_grouped == number - int(counts[hit])
        assert found.coverage.num_tokens == number - 1
        assert found.batch is not None
        assert whole.batch is not None
        assert torch.equal(found.batch.teacher.input_ids, whole.batch.teacher.input_ids)


def test_a_batch_with_nothing_trained_asks_the_teacher_nothing() -> None:
    row = rollout(b"the", 1)
    bare = rollout(b"the", 1, trained=(False,) * len(row.completion_ids))
    found = translator("byte-level", "sentence-piece").batch(collate([bare]))
    assert found.batch is None
    assert len(found.groups.student_first) == 0
