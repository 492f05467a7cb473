"""What only the teacher may read: its own view of each prompt, before the very same completion.

A row's completion ids are not touched here. The teacher's prompt is worded by a template, goes
through its own chat template, and must end where the completion starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, final

import torch
from jinja2 import StrictUndefined, TemplateError
from jinja2 import Template as Wording
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Prompt, Rollout
from tutelage.text.chat import TooLongError, question_of
from tutelage.text.template import Message, Template, plain_ids

Context = Literal["solution", "answer", "other", "none", "feedback", "wrong"]
"""A worked solution; the final answer alone; another problem with its solution; nothing; what was
said about an attempt; a solution that is wrong, worded as if it were right."""

COLUMNS: Final[Mapping[Context, str | None]] = {
    "solution": "solution",
    "answer": "answer",
    "other": "solution",
    "none": None,
    "feedback": "feedback",
    "wrong": "wrong_solution",
}
"""Where each context is read from, unless another column is named."""

_GAP = " [...] "
_NEAR = 24
"""How many characters a cut may move to fall between two words."""

Kept = TypeVar("Kept")


@final
@dataclass(frozen=True, kw_only=True)
class Shown(Generic[Kept]):
    """Rows with a view of their own for the teacher, and what became of the others."""

    rows: list[Kept]
    dropped: list[str]
    """Names of the rows whose teacher's prompt was over the limit even with its text cut."""
    cut: list[str]
    """Names of the rows whose text was cut in its middle."""


@final
@dataclass(frozen=True, kw_only=True)
class TeacherView:
    """Gives prompts and rollouts a prompt of the teacher's own, with its privileged context.

    With `none` and the student's templates, both read the same ids.
    """

    tokenizer: PreTrainedTokenizerBase
    context: Context = "solution"
    column: str | None = None
    """Where the context's text is read from; None: see `COLUMNS`."""
    wording: Path | None = None
    """A Jinja file in place of the package's own; that one says what it is given."""
    chat_template: str | None = None
    """The Jinja template for conversations; None: the tokenizer's own."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Variables for the chat template (`enable_thinking` and the like)."""
    max_prompt_tokens: int | None = None
    """The text of a longer prompt is cut in its middle, and nothing else of it."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to a prompt that is over the limit with no text left; drops are counted."""
    seed: int = 0
    """Decides which row's solution `other` shows."""

    def prompts(self, prompts: Sequence[Prompt]) -> Shown[Prompt]:
        """Each prompt with the teacher's view of it.

        Raises:
            ConfigError: the wording or the chat template is not one to teach with; says why.
            DataError: naming the row, and the column where it is one column's fault.
            TooLongError: for a prompt over the limit, where those are errors.
        """
        return self._shown(prompts, lambda prompt: prompt, lambda _, shown: shown)

    def rollouts(self, rollouts: Sequence[Rollout]) -> Shown[Rollout]:
        """Each rollout with the teacher's view of its prompt; completions stay as they are.

        Raises:
            ConfigError: the wording or the chat template is not one to teach with; says why.
            DataError: naming the row, and the column where it is one column's fault.
            TooLongError: for a prompt over the limit, where those are errors.
        """
        return self._shown(
            rollouts, lambda row: row.prompt, lambda row, shown: replace(row, prompt=shown)
        )

    def _shown(
        self,
        rows: Sequence[Kept],
        prompt_of: Callable[[Kept], Prompt],
        with_prompt: Callable[[Kept, Prompt], Kept],
    ) -> Shown[Kept]:
        prompts = [prompt_of(row) for row in rows]
        others = _others(prompts, self.seed) if self.context == "other" else prompts
        writer = _Writer(self, _wording(self.wording))
        kept: list[Kept] = []
        dropped: list[str] = []
        cut: list[str] = []
        for row, prompt, other in zip(rows, prompts, others, strict=True):
            try:
                ids, was_cut = writer.write(prompt, other)
            except TooLongError:
                if self.too_long == "error":
                    raise
                dropped.append(prompt.name)
                continue
            kept.append(with_prompt(row, replace(prompt, teacher_ids=tuple(ids))))
            if was_cut:
                cut.append(prompt.name)
        return Shown(rows=kept, dropped=dropped, cut=cut)


@final
class _Writer:
    """Writes the teacher's prompts of one view."""

    def __init__(self, view: TeacherView, wording: Wording) -> None:
        self._view = view
        self._wording = wording
        self._checked = False

    def write(self, prompt: Prompt, other: Prompt) -> tuple[list[int], bool]:
        """The ids, and whether the text had to be cut."""
        if prompt.teacher_ids is not None:
            message = (
                f"{prompt.name}: column teacher_prompt or a teacher template gives the teacher a "
                "prompt already; a privileged context must be its only one. Remove one of them."
            )
            raise DataError(message)
        text = self._text(other)
        ids = self._ids(prompt, other, text)
        limit = self._view.max_prompt_tokens
        if limit is None or len(ids) <= limit:
            return ids, False
        shortest = ids if text is None else self._ids(prompt, other, _middle_out(text, 1))
        if text is None or self._view.context == "answer" or len(shortest) > limit:
            message = (
                f"{prompt.name}: the teacher's prompt is {len(shortest)} tokens without the text "
                f"that may be cut; it must be at most {limit}. Raise the teacher's "
                "max_prompt_tokens, shorten the row, or set too_long: drop."
            )
            raise TooLongError(message)
        return self._longest(prompt, other, text, shortest), True

    def _longest(self, prompt: Prompt, other: Prompt, text: str, shortest: list[int]) -> list[int]:
        """The prompt with as much of the text as there is room for."""
        limit = self._view.max_prompt_tokens
        found, fits, too_many = shortest, 1, len(text)
        while too_many - fits > 1:
            kept = (fits + too_many) // 2
            ids = self._ids(prompt, other, _middle_out(text, kept))
            if limit is None or len(ids) <= limit:
                found, fits = ids, kept
            else:
                too_many = kept
        return found

    def _text(self, source: Prompt) -> str | None:
        column = COLUMNS[self._view.context]
        if column is None:
            return None
        column = self._view.column or column
        where = f"{source.name}: column {column}"
        if column not in source.row:
            columns = ", ".join(sorted(source.row)) or "none"
            message = (
                f"{where} is missing (columns: {columns}); it must hold the teacher's "
                f"{self._view.context}. Name another in teacher.column, or fill it."
            )
            raise DataError(message)
        value = source.row[column]
        if value is not None and not isinstance(value, str | int | float):
            message = (
                f"{where} is of type {type(value).__name__}; it must be a text for the teacher to "
                "read. Convert it."
            )
            raise DataError(message)
        text = "" if value is None else str(value).strip()
        if not text:
            message = f"{where} is empty; it must hold a text. Fill it, or drop the row."
            raise DataError(message)
        return text

    def _ids(self, prompt: Prompt, other: Prompt, text: str | None) -> list[int]:
        question = question_of(prompt.row, prompt.name)
        tokenizer = self._view.tokenizer
        if isinstance(question, str):
            worded = self._worded(prompt, other, text, question)
            if not worded.endswith(question):
                message = (
                    f"{prompt.name}: the teacher's wording of a plain prompt ends with "
                    f"{worded[-20:]!r}; it must end with the prompt itself, where the completion "
                    "starts. Put {{ problem }} last where conversation is false."
                )
                raise ConfigError(message)
            return plain_ids(tokenizer, worded)
        *before, last = question
        if last["role"] != "user":
            message = (
                f"{prompt.name}: the prompt ends with a message of {last['role']}; it must end "
                "with one of user, where the teacher's context is added. Drop what follows it."
            )
            raise DataError(message)
        content = self._worded(prompt, other, text, str(last["content"]))
        messages: list[Message] = [*before, {**last, "content": content}]
        view = self._view
        template = Template(tokenizer, view.chat_template, view.template_kwargs, prompt.name)
        if not self._checked:
            template.check_opened(messages)
            self._checked = True
        return template.prompt_ids(messages)

    def _worded(self, prompt: Prompt, other: Prompt, text: str | None, problem: str) -> str:
        try:
            worded = self._wording.render(
                problem=problem,
                context=self._view.context,
                text=text,
                other_problem=_last_words(other) if self._view.context == "other" else None,
                conversation=not isinstance(prompt.row.get("prompt"), str),
                row=prompt.row,
            )
        except TemplateError as error:
            message = (
                f"{prompt.name}: the teacher's wording cannot be rendered ({error}); it must be a "
                "Jinja template for every row. Mend it, or leave it out for the package's own."
            )
            raise ConfigError(message) from error
        for what, part in (("problem", problem), ("text", text)):
            if part is not None and part not in worded:
                message = (
                    f"{prompt.name}: the teacher's wording leaves out {{{{ {what} }}}}; it must "
                    "show it whole. Put it into the template."
                )
                raise ConfigError(message)
        return worded


def wording_file(name: str) -> Path:
    """Where a wording is: one of the package's own by its name, such as `brief`, or a file."""
    own = Path(str(files("tutelage.text"))) / "templates" / f"{name}.j2"
    return own if name.isidentifier() and own.is_file() else Path(name).expanduser()


def _wording(path: Path | None) -> Wording:
    if path is None:
        source = files("tutelage.text").joinpath("templates/privileged.j2").read_text("utf-8")
    else:
        try:
            source = path.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = (
                f"The teacher's wording {path} cannot be read ({error}); it must be a Jinja file "
                "in UTF-8. Correct teacher.wording, or leave it out for the package's own."
            )
            raise ConfigError(message) from error
    # Rows are data, never markup: nothing is escaped, and nothing in a row is run.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        message = (
            f"The teacher's wording {path} is not Jinja ({error}); it must be a template. Mend it."
        )
        raise ConfigError(message) from error


def _others(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """For each prompt another one, by the seed: along one shuffled circle, so each serves once.

    Where neighbours on the circle are the same problem, the next that differs takes its place.
    """
    num = len(prompts)
    order: list[int] = torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()
    found = dict[int, Prompt]()
    for place, index in enumerate(order):
        own = prompts[index].student_ids
        ahead = (prompts[order[(place + step) % num]] for step in range(1, num))
        other = next((prompt for prompt in ahead if prompt.student_ids != own), None)
        if other is None:
            message = (
                f"{prompts[index].name} is the only problem among {num} row(s); there must be two "
                "or more to show another one's solution. Add rows, or choose another context."
            )
            raise DataError(message)
        found[index] = other
    return [found[index] for index in range(num)]


def _last_words(prompt: Prompt) -> str:
    question = question_of(prompt.row, prompt.name)
    return question if isinstance(question, str) else str(question[-1]["content"])


def _middle_out(text: str, num_kept: int) -> str:
    """The text's beginning and end, about `num_kept` characters of it, cut between words."""
    head = text[: (num_kept + 1) // 2]
    tail = text[len(text) - num_kept // 2 :]
    space = max(head.rfind(mark) for mark in " \n")
    if len(head) - _NEAR <= space and space > 0:
        head = head[:space]
    spaces = [at for at in (tail.find(mark) for mark in " \n") if 0 <= at < _NEAR]
    if spaces and min(spaces) + 1 < len(tail):
        tail = tail[min(spaces) + 1 :]
    return f"{head}{_GAP}{tail}"
