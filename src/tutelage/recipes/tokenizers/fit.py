"""How well two tokenizers fit, on the rows of a recipe."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Rollout
from tutelage.recipes.config import Recipe
from tutelage.recipes.tokenizers.build import TwoLanguages, two_languages
from tutelage.text import collate

_NUM_ROWS = 64
_FEW = 0.5
_NUM_NAMED = 4


def told_of_fit(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Rollout]
) -> Iterator[tuple[bool, str]]:
    """What there is to say of the pair: whether it is well, and in words."""
    both = two_languages(recipe, tokenizer, rows)
    words = both.words
    sizes = f"{both.student.num_entries:,} and {both.teacher.num_entries:,} entries"
    shared = f"{len(words.student_ids):,} say the same"
    yield True, f"student and teacher have other tokenizers, {sizes}; {shared}"
    yield bool(both.specials), _told_of_specials(both, tokenizer)
    some = [row for row in rows[:_NUM_ROWS] if row.completion_ids]
    if not some:
        return
    coverage = both.translator.batch(collate(some)).coverage
    shares = coverage.numbers()
    single, grouped = shares["aligned_single_share"], shares["aligned_token_share"]
    text = (
        f"of {coverage.num_tokens:,} tokens in {len(some)} rows {single:.1%} have one token of the "
        f"teacher beside them, {grouped - single:.1%} are in larger groups and {1 - grouped:.1%} "
        f"have no partner; {shares['aligned_byte_share']:.1%} of the bytes are aligned and "
        f"{coverage.num_lost_rows} rows lost"
    )
    yield single >= _FEW, text


def _told_of_specials(both: TwoLanguages, tokenizer: PreTrainedTokenizerBase) -> str:
    theirs = both.teacher_tokenizer
    named = [
        f"{tokenizer.convert_ids_to_tokens(a)!r} as {theirs.convert_ids_to_tokens(b)!r}"
        for a, b in both.specials.items()
    ]
    if not named:
        return "no special token of the student has one of the teacher's: set special_tokens"
    more = f" and {len(named) - _NUM_NAMED} more" if len(named) > _NUM_NAMED else ""
    return f"the teacher reads {', '.join(named[:_NUM_NAMED])}{more}"
