"""Rows of data into token ids: prompts, completions and which of their tokens are trained.

Rows have TRL's columns: `prompt` and `completion`, as strings or as messages; `messages`; or
`text`. Each row is rendered once and cut at the level of ids; nothing is decoded and encoded again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, cast, final

from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import DataError
from tutelage.core.records import Prompt, Rollout
from tutelage.text.template import Message, Template, eos_of, plain_ids

Kept = TypeVar("Kept")


@final
class TooLongError(DataError):
    """A prompt over the limit: what `too_long` decides about."""


@final
@dataclass(frozen=True, kw_only=True)
class Formatted(Generic[Kept]):
    """The rows that can be used, and how many could not."""

    rows: list[Kept]
    dropped: list[str]
    """Names of the rows whose prompt was over the limit."""


@final
@dataclass(frozen=True)
class Formatter:
    """Turns rows into prompts and rollouts for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None = None
    """A Jinja template to use for conversations; None: the tokenizer's own."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Variables for the template (`enable_thinking` and the like)."""
    max_prompt_tokens: int | None = None
    """A longer prompt is refused or dropped, never cut."""
    max_completion_tokens: int | None = None
    """A longer completion is cut there, marked truncated, and has no end-of-sequence token."""
    too_long: Literal["error", "drop"] = "error"
    """What `rollouts` and `prompts` do with a prompt over the limit; drops are counted."""
    trained_turns: Literal["last", "all"] = "last"
    """Of `messages`, train the last answer, or every answer of the assistant."""
    teacher_template: str | None = None
    """Another template for the teacher's view of the prompt; it may read the row's columns
    (`row.solution`). A column `teacher_prompt` takes its place."""

    def rollout(self, row: Mapping[str, Any], name: str) -> Rollout:
        """The row's prompt and its completion, which ends with the token that ends a turn.

        Args:
            name: where the row is from ("data.jsonl line 7"), for errors.

        Raises:
            DataError: naming the row, and the column where it is one column's fault.
            TooLongError: for a prompt over the limit.
        """
        whole, spans = self._read(row, name)
        start = spans[0][0]
        prompt = self._prompt(row, name, whole[:start])
        completion = whole[start:]
        trained = [any(a <= at < b for a, b in spans) for at in range(start, len(whole))]
        limit = self.max_completion_tokens
        cut = limit is not None and len(completion) > limit
        if cut:
            completion, trained = completion[:limit], trained[:limit]
        return Rollout(
            prompt=prompt,
            completion_ids=tuple(completion),
            trained=None if all(trained) else tuple(trained),
            truncated=cut,
        )

    def open_rollout(self, row: Mapping[str, Any], name: str) -> Rollout:
        """`rollout` of a row with a completion; a rollout without a token of one elsewhere.

        Raises:
            DataError: as in `rollout` and `prompt`.
        """
        if _is_completed(row):
            return self.rollout(row, name)
        return Rollout(prompt=self.prompt(row, name), completion_ids=())

    def prompt(self, row: Mapping[str, Any], name: str) -> Prompt:
        """The row's prompt alone: what comes before the (last) answer, up to where one begins.

        Raises:
            DataError: naming the row, and the column where it is one column's fault.
            TooLongError: for a prompt over the limit.
        """
        question = question_of(row, name)
        if isinstance(question, str):
            return self._prompt(row, name, self._plain(question))
        return self._prompt(row, name, self._template(name).prompt_ids(question))

    def rollouts(
        self, rows: Iterable[tuple[Mapping[str, Any], str]], *, completed: bool = True
    ) -> Formatted[Rollout]:
        """`rollout` of every (row, name); prompts over the limit by the rule of `too_long`.

        Args:
            completed: False takes rows without a completion too, by `open_rollout`.
        """
        return self._sorted_out(rows, self.rollout if completed else self.open_rollout)

    def prompts(self, rows: Iterable[tuple[Mapping[str, Any], str]]) -> Formatted[Prompt]:
        """`prompt` of every (row, name); prompts over the limit by the rule of `too_long`."""
        return self._sorted_out(rows, self.prompt)

    def _sorted_out(
        self,
        rows: Iterable[tuple[Mapping[str, Any], str]],
        make: Callable[[Mapping[str, Any], str], Kept],
    ) -> Formatted[Kept]:
        kept: list[Kept] = []
        dropped: list[str] = []
        for row, name in rows:
            try:
                kept.append(make(row, name))
            except TooLongError:
                if self.too_long == "error":
                    raise
                dropped.append(name)
        return Formatted(rows=kept, dropped=dropped)

    def _read(
        self, row: Mapping[str, Any], name: str
    ) -> tuple[Sequence[int], list[tuple[int, int]]]:
        """All ids of the row, and the spans of them that are trained."""
        if "messages" in row:
            messages = _messages(row, "messages", name)
            every = self.trained_turns == "all"
            return self._template(name).answers(messages, every=every)
        if "text" in row and "prompt" not in row:
            ids = self._plain(_text(row, "text", name))
            return [*ids, eos_of(self.tokenizer)], [(1, len(ids) + 1)]
        if "prompt" not in row:
            columns = ", ".join(sorted(row)) or "none"
            must = "prompt and completion, messages, or text"
            raise _bad(name, "", f"a row with the columns {columns}", must, "Rename the columns")
        if isinstance(row["prompt"], str):
            before = self._plain(_text(row, "prompt", name))
            answer = self._answer(row, before, name)
            return [*before, *answer], [(len(before), len(before) + len(answer))]
        messages = _messages(row, "prompt", name)
        answers = row.get("completion")
        if isinstance(answers, str):
            answers = [{"role": "assistant", "content": _text(row, "completion", name)}]
        turns = [*messages, *_messages({**row, "completion": answers}, "completion", name)]
        template = self._template(name)
        return template.answer_after(turns, num_prompt=len(messages))

    def _answer(self, row: Mapping[str, Any], before: list[int], name: str) -> list[int]:
        """The ids of a plain completion, ended by EOS."""
        completion = _text(row, "completion", name)
        together = self._plain(row["prompt"] + completion)
        if together[: len(before)] == before:
            ids = together[len(before) :]
        else:
            # A token spans the seam; the model will be prompted without it, so it is not used.
            ids = self._encode(completion)
        return [*ids, eos_of(self.tokenizer)]

    def _prompt(self, row: Mapping[str, Any], name: str, ids: Sequence[int]) -> Prompt:
        teacher = self._teacher_ids(row, name)
        for who, view in (("", ids), ("teacher's ", teacher)):
            if view is None:
                continue
            if not view:
                raise _bad(name, "prompt", "without a token", "some text", "Fill it")
            limit = self.max_prompt_tokens
            if limit is not None and len(view) > limit:
                message = (
                    f"{name}: the {who}prompt is {len(view)} tokens; it must be at most {limit}. "
                    "Raise max_prompt_tokens, shorten the row, or set too_long: drop."
                )
                raise TooLongError(message)
        return Prompt(
            student_ids=tuple(ids),
            teacher_ids=None if teacher is None else tuple(teacher),
            row=row,
            name=name,
        )

    def _teacher_ids(self, row: Mapping[str, Any], name: str) -> Sequence[int] | None:
        if "teacher_prompt" in row:
            if isinstance(row["teacher_prompt"], str):
                return self._plain(_text(row, "teacher_prompt", name))
            return self._template(name).prompt_ids(_messages(row, "teacher_prompt", name))
        if self.teacher_template is None:
            return None
        messages = question_of(row, name)
        if isinstance(messages, str):
            raise _bad(name, "prompt", "a plain text", "messages", "Give a column teacher_prompt")
        variables = {**self.template_kwargs, "row": row}
        own = Template(self.tokenizer, self.teacher_template, variables, name)
        return own.prompt_ids(messages)

    def _template(self, name: str) -> Template:
        return Template(self.tokenizer, self.chat_template, self.template_kwargs, name)

    def _plain(self, text: str) -> list[int]:
        return plain_ids(self.tokenizer, text)

    def _encode(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_completed(row: Mapping[str, Any]) -> bool:
    if "prompt" in row:
        return row.get("completion") is not None
    messages = row.get("messages")
    if not isinstance(messages, Sequence) or not messages:
        # Whatever is wrong with it, `rollout` says so.
        return True
    last = cast("Sequence[Any]", messages)[-1]
    return not isinstance(last, Mapping) or cast("Mapping[str, Any]", last).get("role") != "user"


def question_of(row: Mapping[str, Any], name: str) -> str | list[Message]:
    """What the row asks: a plain text, or the messages before the (last) answer.

    Raises:
        DataError: naming the row and the column.
    """
    if isinstance(row.get("prompt"), str):
        return _text(row, "prompt", name)
    if "prompt" in row:
        return _messages(row, "prompt", name)
    messages = _messages(row, "messages", name)
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise _bad(name, "messages", "an answer alone", "at least one question", "Add a message")
    return messages


def _text(row: Mapping[str, Any], column: str, name: str) -> str:
    if column not in row:
        columns = ", ".join(sorted(row)) or "none"
        raise _bad(name, column, f"missing (columns: {columns})", "a text", "Rename the columns")
    text = row[column]
    if not isinstance(text, str):
        raise _bad(name, column, f"of type {type(text).__name__}", "a text", "Convert it")
    if not text:
        raise _bad(name, column, "empty", "a text", "Fill it, or drop the row")
    return text


def _messages(row: Mapping[str, Any], column: str, name: str) -> list[Message]:
    must = "a list of messages with role and content"
    if column not in row or row[column] is None:
        columns = ", ".join(sorted(row)) or "none"
        raise _bad(name, column, f"missing (columns: {columns})", must, "Rename the columns")
    given = row[column]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise _bad(name, column, f"of type {type(given).__name__}", must, "Convert it")
    messages = [m for m in cast(Sequence[Any], given) if isinstance(m, Mapping)]
    typed = cast(list[Mapping[str, Any]], messages)
    if len(typed) != len(cast(Sequence[Any], given)) or any(
        not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str) for m in typed
    ):
        raise _bad(name, column, "a list with something else in it", must, "Convert it")
    if not typed:
        raise _bad(name, column, "empty", must, "Fill it, or drop the row")
    return [dict(m) for m in typed]


def _bad(name: str, column: str, got: str, must: str, then: str) -> DataError:
    where = f"{name}: column {column}" if column else name
    return DataError(f"{where} is {got}; it must be {must}. {then}.")
