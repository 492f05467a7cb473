"""From settings to a teacher that reads in its own tokens, and to its own prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from transformers import PreTrainedTokenizerBase

from tutelage.core.crossing import SharedWords
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Rollout
from tutelage.core.seeds import seed_for
from tutelage.models import CausalLM
from tutelage.objectives import Bridge
from tutelage.objectives.groupwise import needs_bridge
from tutelage.recipes.config import LiveTeacherSettings, Recipe, ToyTeacherSettings
from tutelage.recipes.pair import teacher_tokenizer
from tutelage.recipes.rows import Rows
from tutelage.teachers import Teacher, TranslatingTeacher
from tutelage.text import Formatter, collate
from tutelage.text.translation import Side, Spelling, Translator, paired_specials, shared_words

_NUM_TRIED = 64
"""Rows that a pair of tokenizers is tried on."""


@final
@dataclass(frozen=True, kw_only=True)
class TwoLanguages:
    """The student's and the teacher's tokenizers, and how one is put into the other."""

    student: Spelling
    teacher: Spelling
    teacher_tokenizer: PreTrainedTokenizerBase
    specials: Mapping[int, int]
    """The student's special tokens to the teacher's."""

    @property
    def translator(self) -> Translator:
        """From the student's tokens to the teacher's."""
        return Translator(self.student, self.teacher, self.specials)

    @property
    def words(self) -> SharedWords:
        """What both vocabularies have."""
        return shared_words(self.student, self.teacher, self.specials)


def two_languages(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Rollout]
) -> TwoLanguages:
    """Both tokenizers, with the special tokens that do the same in such rows.

    Raises:
        ModelError: a tokenizer that does not say which bytes its tokens stand for.
        ConfigError: a special token that does not exist.
    """
    theirs = teacher_tokenizer(recipe)
    if theirs is None:
        raise ConfigError("teacher is missing; it must be given. Name a model in teacher.model.")
    student = Side(tokenizer, chat_template=recipe.rollouts.chat_template)
    teacher = Side(theirs, chat_template=recipe.rollouts.teacher_template)
    settings = recipe.teacher
    given = settings.special_tokens if isinstance(settings, LiveTeacherSettings) else None
    conversations = any(_is_conversation(row.prompt.row) for row in rows)
    specials = paired_specials(student, teacher, conversations=conversations, given=given)
    return TwoLanguages(
        student=student.spelling,
        teacher=teacher.spelling,
        teacher_tokenizer=theirs,
        specials=specials,
    )


def with_teacher_prompts(rows: Rows, recipe: Recipe, both: TwoLanguages) -> Rows:
    """The rows with each prompt as the teacher reads it: by its own template, in its own tokens."""
    formatter = Formatter(
        both.teacher_tokenizer,
        chat_template=recipe.rollouts.teacher_template,
        template_kwargs=recipe.rollouts.template_arguments,
    )

    def shown(row: Rollout) -> Rollout:
        ids = _teacher_prompt(row, formatter, both)
        return replace(row, prompt=replace(row.prompt, teacher_ids=ids))

    return replace(
        rows,
        training=[shown(row) for row in rows.training],
        held_out=[shown(row) for row in rows.held_out],
    )


def translating_teacher(
    recipe: Recipe, rows: Rows, both: TwoLanguages, lm: CausalLM
) -> TranslatingTeacher:
    """The recipe's teacher, asked in its own language."""
    some = [row for row in rows.training[:_NUM_TRIED] if row.completion_ids]
    if some and not both.translator.batch(collate(some)).coverage.num_groups:
        raise DataError(
            f"The teacher's tokenizer can say none of the first {len(some)} completions; it must "
            "be able to say some. Look at the rows, or choose another teacher."
        )
    assert isinstance(recipe.teacher, LiveTeacherSettings | ToyTeacherSettings)  # noqa: S101
    return TranslatingTeacher(
        lm,
        both.translator,
        both.words,
        num_real=both.teacher.num_entries,
        remember_bytes=recipe.teacher.remember_megabytes * 2**20,
    )


def add_bridge(recipe: Recipe, student: CausalLM, teacher: Teacher | None) -> None:
    """Give the student the projections that its objective trains along."""
    if isinstance(teacher, TranslatingTeacher) and needs_bridge(recipe.objective):
        width = int(student.head.weight.shape[1])
        bridge = Bridge(width, teacher.width, seed=seed_for(recipe.seed, "bridge"))
        student.bridge = bridge.to(student.device)


def _teacher_prompt(row: Rollout, formatter: Formatter, both: TwoLanguages) -> tuple[int, ...]:
    columns = row.prompt.row
    if "teacher_prompt" in columns:
        columns = {**columns, "prompt": columns["teacher_prompt"]}
    if "prompt" in columns or "messages" in columns:
        ids = formatter.prompt(columns, row.prompt.name).student_ids
    else:
        # A `text`: the student's prompt is its first token, which may be a BOS without bytes.
        ids = tuple(both.teacher.encode(both.student.says(row.prompt.student_ids)) or ())
        ids = (*_opening(both.teacher_tokenizer), *ids)
    return ids or _opening(both.teacher_tokenizer, always=True)


def _opening(tokenizer: PreTrainedTokenizerBase, *, always: bool = False) -> tuple[int, ...]:
    """What a text begins with: BOS where the tokenizer writes one, or in any case something."""
    begin: Any = tokenizer.bos_token_id
    written: Any = tokenizer("")["input_ids"]
    if begin is not None and (always or begin in written):
        return (int(begin),)
    end: Any = tokenizer.eos_token_id
    return (int(end),) if always and end is not None else ()


def _is_conversation(columns: Mapping[str, Any]) -> bool:
    return not isinstance(columns.get("prompt", columns.get("text")), str)
