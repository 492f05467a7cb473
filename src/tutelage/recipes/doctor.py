"""Looks a recipe over before training: tokenizer, template, ends, vocabularies, lengths, dtype.

Reads configurations, tokenizers and every row, and no weights but those of a small teacher whose
answers are cached or come from a server. A mistake is a finding, not an end.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from tutelage.core.errors import TutelageError
from tutelage.core.records import Rollout
from tutelage.recipes.caching import Language
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import (
    CachedTeacherSettings,
    LiveTeacherSettings,
    Recipe,
    SelfTeacherSettings,
    SeveralTeacherSettings,
)
from tutelage.recipes.pair import (
    check_vocabularies,
    crosses,
    student_config,
    student_tokenizer,
    teacher_config,
    teacher_tokenizer,
    vocabulary_size,
)
from tutelage.recipes.rows import (
    Rows,
    described,
    needs_completions,
    prepare_rows,
    refuse_no_room,
    with_views,
    writes,
)
from tutelage.recipes.several import look_elsewhere
from tutelage.recipes.tokenizers import told_of_fit
from tutelage.rollouts import WritingSettings
from tutelage.students import lora_of
from tutelage.text import num_tokens

Verdict = Literal["fine", "note", "wrong"]


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    verdict: Verdict
    subject: str
    text: str
    """What was found; for something wrong also what to change."""


def examine(recipe: Recipe) -> list[Finding]:
    """All findings, in the order in which a run would trip over them."""
    found = [
        Finding(verdict="wrong", subject="settings", text=line) for line in contradictions(recipe)
    ] or [Finding(verdict="fine", subject="settings", text="nothing contradicts itself")]
    found += _output(recipe)
    tokenizer = _tried(found, "tokenizer", lambda: student_tokenizer(recipe))
    shape = _tried(found, "student", lambda: student_config(recipe))
    teacher = _tried(found, "teacher", lambda: teacher_config(recipe))
    if tokenizer is None or shape is None or (teacher is None and recipe.teacher is not None):
        return found
    found += _collected("tokenizer", lambda: _tokenizer(recipe, tokenizer))
    found += _collected("vocabulary", lambda: _vocabulary(recipe, tokenizer, shape, teacher))
    found += _collected("dtype", lambda: _dtype(recipe, teacher))
    rows = _tried(found, "rows", lambda: _prepared(recipe, tokenizer))
    if rows is None:
        return found
    found += _collected("rows", lambda: _rows(recipe, rows))
    found += _collected("chat template", lambda: _template(recipe, tokenizer, rows))
    found += _collected("teacher", lambda: _elsewhere(recipe, tokenizer, rows))
    found += _collected("tokenizers", lambda: _tokenizers(recipe, tokenizer, rows))
    found += _collected("privileged context", lambda: _context(recipe, rows))
    found += _collected("end of turn", lambda: _ends(recipe, tokenizer, shape, rows))
    found += _collected("lengths", lambda: _lengths(recipe, rows, shape, teacher))
    found += _collected("rollouts", lambda: _writing(recipe, rows, shape, teacher))
    return found


def _fine(subject: str, text: str) -> Finding:
    return Finding(verdict="fine", subject=subject, text=text)


def _note(subject: str, text: str) -> Finding:
    return Finding(verdict="note", subject=subject, text=text)


def _wrong(subject: str, text: str) -> Finding:
    return Finding(verdict="wrong", subject=subject, text=text)


def _tried(found: list[Finding], subject: str, get: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What `get` gives; its error becomes a finding. The type is whatever `get` gives."""
    try:
        return get()
    except TutelageError as error:
        found.append(_wrong(subject, str(error)))
        return None


def _collected(subject: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except TutelageError as error:
        return [_wrong(subject, str(error))]


def _output(recipe: Recipe) -> Iterator[Finding]:
    folder = Path(recipe.folder)
    if (folder / "metrics.jsonl").exists():
        yield _note("output", f"{folder} holds a run: --resume goes on, --overwrite replaces it")


def _tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    if tokenizer.eos_token_id is None:
        yield _wrong("tokenizer", "has no end-of-sequence token; set eos_token in its config")
    else:
        yield _fine("tokenizer", f"{len(tokenizer):,} entries, ends with {tokenizer.eos_token!r}")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield _fine("padding", "is the end token too, which is safe: masks come from lengths")
    words = teacher_tokenizer(recipe)
    if words is None or recipe.student.kind != "loaded":
        return
    chosen = recipe.rollouts.chat_template or recipe.rollouts.teacher_template
    if words.chat_template != tokenizer.chat_template and chosen is None:
        yield _note(
            "chat template",
            "student and teacher have different ones; both read the student's. Set "
            "rollouts.teacher_template if the teacher should read its own",
        )
    if words.eos_token != tokenizer.eos_token:
        yield _note(
            "tokenizer",
            f"the teacher ends with {words.eos_token!r}, the student with {tokenizer.eos_token!r}: "
            "a teacher that never ends its turn teaches endless answers",
        )


def _vocabulary(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    shape: PretrainedConfig,
    teacher: PretrainedConfig | None,
) -> Iterator[Finding]:
    num_real = check_vocabularies(recipe, tokenizer)
    if num_real is None or teacher is None:
        yield _fine("vocabulary", f"{vocabulary_size(shape):,} entries, no teacher to agree with")
        return
    if crosses(recipe, tokenizer):
        return
    text = f"student and teacher share {num_real:,} entries"
    heads = [vocabulary_size(shape), vocabulary_size(teacher)]
    if any(size != num_real for size in heads):
        behind = " and ".join(f"{size - num_real:,}" for size in heads)
        text += f"; {behind} rows behind them are padding and masked on both sides"
    yield _fine("vocabulary", text)


def _dtype(recipe: Recipe, teacher: PretrainedConfig | None) -> Iterator[Finding]:
    if recipe.student.dtype != "float32" and lora_of(recipe.student) is None:
        yield _note(
            "dtype",
            f"student.dtype is {recipe.student.dtype}: small updates are lost in it; float32 with "
            "training.precision: bf16 is as fast and learns better",
        )
    saved = getattr(teacher, "dtype", None)
    asked = recipe.teacher.dtype if isinstance(recipe.teacher, LiveTeacherSettings) else "auto"
    if asked == "float16":
        yield _note("dtype", "teacher.dtype is float16, which overflows where bfloat16 does not")
    elif saved is not None:
        yield _fine("dtype", f"the teacher was saved in {str(saved).removeprefix('torch.')}")
    if recipe.training.precision == "bf16" and not torch.cuda.is_available():
        capability = torch.backends.cpu.get_cpu_capability()
        yield _note(
            "dtype", f"bf16 on this CPU ({capability}) may be no faster than fp32: try both"
        )


def _rows(recipe: Recipe, rows: Rows) -> Iterator[Finding]:
    yield _fine("rows", f"{len(rows.training):,} to train on, {len(rows.held_out):,} held out")
    for note in rows.notes:
        yield _note("rows", note)
    epochs = recipe.training.num_steps * recipe.training.rows_per_step / len(rows.training)
    if recipe.training.tokens_per_step is None:
        yield _fine("rows", f"each is seen {epochs:.1f} times")


def _prepared(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    return with_views(prepare_rows(recipe, tokenizer), recipe, tokenizer)


def _template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> Iterator[Finding]:
    # prepare_rows has refused every row whose prompt is not the beginning of the whole.
    conversational = sum(not _is_plain(row) for row in rows.training)
    if conversational:
        own = recipe.rollouts.chat_template is not None
        whose = "rollouts.chat_template" if own else "the tokenizer's"
        yield _fine("chat template", f"{whose}; each prompt is the beginning of its whole row")
    elif tokenizer.chat_template:
        yield _note(
            "chat template",
            "is not used, for prompts are plain strings; write them as messages to train a chat",
        )
    begin = tokenizer.bos_token_id
    twice = sum(row.prompt.student_ids[:2] == (begin, begin) for row in rows.training)
    if begin is not None and twice:
        yield _wrong(
            "chat template",
            f"{twice} prompts begin with two {tokenizer.bos_token!r}: the template writes one and "
            "the text has one; remove it from the text",
        )


def _context(recipe: Recipe, rows: Rows) -> Iterator[Finding]:
    settings = recipe.teacher
    if not isinstance(settings, SelfTeacherSettings):
        return
    every = [row.prompt for row in rows.training + rows.held_out]
    lengths = [
        sorted(len(ids or ()) for ids in one)
        for one in ([p.student_ids for p in every], [p.teacher_ids for p in every])
    ]
    middles = [one[len(one) // 2] for one in lengths]
    yield _fine(
        "privileged context",
        f"{settings.context}: the teacher's prompts have {middles[1]} tokens in the middle, "
        f"{lengths[1][-1]} at most, the student's {middles[0]}; both end where the same "
        "completion starts",
    )
    alike = sum(prompt.teacher_ids == prompt.student_ids for prompt in every)
    if alike and settings.weights != "average":
        yield _note(
            "privileged context",
            f"{alike} rows are read alike by teacher and student, who then agree until the "
            "student has moved; give the teacher a context or template_arguments of its own",
        )
    if settings.weights == "live":
        yield _note(
            "privileged context",
            "teacher.weights is live: a teacher that moves with its student is said to be "
            "unstable; compare with initial or average",
        )
    if settings.context in ("other", "none", "wrong"):
        yield _note("privileged context", f"{settings.context} is a control: it shows no solution")


def _elsewhere(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> Iterator[Finding]:
    language = Language(tokenizer=tokenizer, num_real=check_vocabularies(recipe, tokenizer))
    for where, looked in look_elsewhere(recipe, rows, language):
        yield (_wrong if looked.wrong else _fine)(where, looked.text)


def _tokenizers(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> Iterator[Finding]:
    if recipe.teacher is None or not crosses(recipe, tokenizer):
        return
    for well, text in told_of_fit(recipe, tokenizer, rows.training):
        yield (_fine if well else _note)("tokenizers", text)


def _is_plain(row: Rollout) -> bool:
    return isinstance(row.prompt.row.get("prompt", row.prompt.row.get("text")), str)


def _ends(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, shape: PretrainedConfig, rows: Rows
) -> Iterator[Finding]:
    completed = [row for row in rows.training if row.completion_ids]
    last = {row.completion_ids[-1] for row in completed if not row.truncated}
    stops = _stops(recipe, shape)
    if not completed:
        yield from _stops_at(tokenizer, stops)
        return
    names = ", ".join(repr(tokenizer.decode([token])) for token in sorted(last))
    if not last:
        yield _note("end of turn", "every completion is cut, so the student never learns to stop")
    elif last <= stops:
        yield _fine("end of turn", f"completions end with {names}, where generation stops")
    else:
        known = ", ".join(repr(tokenizer.decode([token])) for token in sorted(stops)) or "nothing"
        yield _wrong(
            "end of turn",
            f"completions end with {names}, but the model's generation config stops at {known}: "
            "the student would talk on. Add the token to eos_token_id in generation_config.json",
        )


def _stops_at(tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> Iterator[Finding]:
    """Where nothing but the models' own words shows how a turn ends."""
    if not stops:
        yield _wrong(
            "end of turn",
            "the model's generation config names no end, so every completion would be cut; set "
            "eos_token_id in generation_config.json",
        )
        return
    names = ", ".join(repr(tokenizer.decode([token])) for token in sorted(stops))
    yield _fine("end of turn", f"what is written stops at {names}")


def _stops(recipe: Recipe, shape: PretrainedConfig) -> set[int]:
    """Token ids at which generation stops: the generation config's, or else the config's."""
    found: Any = getattr(shape, "eos_token_id", None)
    source = getattr(recipe.student, "model", None) or getattr(recipe.teacher, "model", None)
    if source is not None and Path(source, "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(source).eos_token_id or found
    if found is None:
        return set()
    return set(found) if isinstance(found, list | tuple) else {int(found)}


def _writing(
    recipe: Recipe,
    rows: Rows,
    shape: PretrainedConfig,
    teacher: PretrainedConfig | None,
) -> Iterator[Finding]:
    """Of completions that models write while the run goes on."""
    settings = recipe.rollouts
    yield _fine("rollouts", described(settings))
    if not isinstance(settings, WritingSettings):
        return
    refuse_no_room(recipe, rows.training, {"student": shape, "teacher": teacher})
    longest = max(len(row.prompt.student_ids) for row in rows.training)
    longest += settings.max_completion_tokens
    if longest > recipe.training.micro_batch_tokens:
        yield _note(
            "rollouts",
            f"a row may grow to {longest} tokens, more than training.micro_batch_tokens "
            f"({recipe.training.micro_batch_tokens}), and then is a forward by itself",
        )
    if "student" in writes(settings) and settings.temperature == 0:
        yield _note(
            "rollouts",
            "a greedy student writes the same until its weights move, and never sees what it says "
            "at random when it is used: rollouts.temperature 1 samples what it would say",
        )
    who = recipe.teacher
    if who is None or isinstance(who, CachedTeacherSettings | SeveralTeacherSettings):
        return
    remembered = who.remember_megabytes
    if not needs_completions(settings) and remembered:
        yield _note(
            "rollouts",
            f"what is written hardly ever comes twice, and teacher.remember_megabytes is "
            f"{remembered}: little more than the held-out rows needs remembering",
        )


def _lengths(
    recipe: Recipe, rows: Rows, shape: PretrainedConfig, teacher: PretrainedConfig | None
) -> Iterator[Finding]:
    every = [*rows.training, *rows.held_out]
    longest = max(every, key=num_tokens)
    lengths = sorted(num_tokens(row) for row in every)
    middle = lengths[len(lengths) // 2]
    yield _fine("lengths", f"rows have {middle} tokens in the middle, {lengths[-1]} at most")
    for who, config in (("student", shape), ("teacher", teacher)):
        room = None if config is None else config.get_text_config().max_position_embeddings
        if room is not None and num_tokens(longest) > room:
            yield _wrong(
                "lengths",
                f"{longest.prompt.name} has {num_tokens(longest)} tokens and the {who} reads "
                f"{room}; lower rollouts.max_prompt_tokens or max_completion_tokens",
            )
    if lengths[-1] > recipe.training.micro_batch_tokens:
        yield _note(
            "lengths",
            f"training.micro_batch_tokens is {recipe.training.micro_batch_tokens}, less than the "
            "longest row, which then is a forward by itself and needs more memory",
        )
