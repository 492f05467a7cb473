"""One conversation through a chat template, cut into prompt and answers at the level of ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import ConfigError, DataError

Message = dict[str, Any]
Span = tuple[int, int]

_ANSWER = "the-answer-starts-here"
_THOUGHT = r"(?:\s|</?[^\s<>]*think[^\s<>]*>)*"
"""White space and the marks around thinking, which templates add and drop at will."""


@final
@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template, asked about one row."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    variables: Mapping[str, Any]
    name: str
    """The row's, for errors."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation so far and the marker that opens the assistant's turn."""
        return self._ids(messages, opened=True)

    def check_opened(self, messages: Sequence[Message]) -> None:
        """Make sure that the prompt ends where an answer starts, thinking marks aside.

        Raises:
            ConfigError: it does not: what opens the assistant's turn is missing.
        """
        opened = re.sub(f"{_THOUGHT}$", "", self._text(messages, opened=True))
        answered = [*messages, {"role": "assistant", "content": _ANSWER}]
        whole = self._text(answered, opened=False)
        gap, found, _ = whole.removeprefix(opened).partition(_ANSWER)
        if whole.startswith(opened) and found and re.fullmatch(_THOUGHT, gap):
            return
        message = (
            f"{self.name}: the teacher's chat template ends with {opened[-20:]!r} where the "
            "completion starts; it must open the assistant's turn (add_generation_prompt). "
            "Mend the template, or leave it out for the tokenizer's own."
        )
        raise ConfigError(message)

    def answers(self, messages: Sequence[Message], *, every: bool) -> tuple[list[int], list[Span]]:
        """All ids up to the end of the last answer, and the span of the last or of every answer.

        A span covers what the template adds behind the opened turn, up to and including the token
        that ends the turn.
        """
        if messages[-1]["role"] != "assistant":
            message = (
                f"{self.name}: column messages ends with a message of {messages[-1]['role']}; it "
                "must end with one of assistant. Drop what follows the last answer."
            )
            raise DataError(message)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        chosen = turns if every else turns[-1:]
        whole, last = self.answer_after(messages, num_prompt=chosen[-1])
        spans: list[Span] = []
        for at in chosen[:-1]:
            ids, (span,) = self.answer_after(messages[: at + 1], num_prompt=at)
            if whole[: len(ids)] != ids:
                message = (
                    f"{self.name}: the chat template shows answer {at} differently once the "
                    "conversation goes on; it must show it alike to train every answer. "
                    "Set trained_turns: last, or another chat_template."
                )
                raise DataError(message)
            spans.append(span)
        return whole, spans + last

    def answer_after(
        self, messages: Sequence[Message], *, num_prompt: int
    ) -> tuple[list[int], list[Span]]:
        """All ids, and the span of what is behind the first `num_prompt` messages."""
        if num_prompt == 0:
            message = (
                f"{self.name}: the conversation begins with the answer; it must begin with "
                "something to answer. Add a message of user."
            )
            raise DataError(message)
        before = self._ids(messages[:num_prompt], opened=True)
        whole = self._ids(messages, opened=False)
        if whole[: len(before)] != before:
            message = (
                f"{self.name}: the rendered prompt is not how the rendered conversation begins; it "
                "must be, or the answer would be trained behind another prompt than it is asked "
                "with. Set template_kwargs (such as enable_thinking), or another chat_template."
            )
            raise DataError(message)
        whole = self._ended(whole, len(before))
        if len(whole) == len(before) or not str(messages[-1]["content"]).strip():
            message = (
                f"{self.name}: the answer is {messages[-1]['content']!r}, without a token; it must "
                "have some. Fill it, or drop the row."
            )
            raise DataError(message)
        return whole, [(len(before), len(whole))]

    def _ids(self, messages: Sequence[Message], *, opened: bool) -> list[int]:
        return cast(list[int], self._rendered(messages, opened=opened, tokenize=True))

    def _text(self, messages: Sequence[Message], *, opened: bool) -> str:
        return cast(str, self._rendered(messages, opened=opened, tokenize=False))

    def _rendered(self, messages: Sequence[Message], *, opened: bool, tokenize: bool) -> object:
        if self.template is None and not self.tokenizer.chat_template:
            message = (
                f"{self.name}: the row is a conversation and the tokenizer has no chat template; "
                "it must have one. Set chat_template, or use plain prompt and completion strings."
            )
            raise ConfigError(message)
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.template,
                add_generation_prompt=opened,
                tokenize=tokenize,
                return_dict=False,
                **self.variables,
            )
        except TemplateError as error:
            message = (
                f"{self.name}: the chat template refuses the conversation ({error}); it must be "
                "one the template can show. Mend the row, or set another chat_template."
            )
            raise DataError(message) from error

    def _ended(self, ids: list[int], start: int) -> list[int]:
        """The ids up to the token that ends the turn; EOS where the template puts none.

        Templates write white space behind that token. It belongs to the next turn: nobody samples
        past the end of a turn.
        """
        special = set(self.tokenizer.all_special_ids)
        special |= {at for at, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        end = len(ids)
        while end > start and ids[end - 1] not in special:
            if str(self.tokenizer.decode([ids[end - 1]])).strip():
                return [*ids, eos_of(self.tokenizer)]
            end -= 1
        return ids[:end]


def eos_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text.

    Raises:
        ConfigError: for a tokenizer without one.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        message = (
            "The tokenizer's EOS token is missing; it must be set, to end completions. "
            "Set eos_token in the tokenizer's folder."
        )
        raise ConfigError(message)
    return cast(int, eos)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text that begins a row: behind BOS if the tokenizer writes one, and never ended."""
    alone = cast(list[int], tokenizer("")["input_ids"])
    encoded = cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*(at for at in alone if at == tokenizer.bos_token_id), *encoded]
