"""What a model says to held-out prompts, as text for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Prompt, Rollout
from tutelage.evaluation.written import Writer
from tutelage.models import CausalLM


def generate_samples(
    lm: CausalLM, rollouts: Sequence[Rollout], *, writer: Writer, when: str
) -> list[dict[str, Any]]:
    """One line of samples.jsonl for each row: its prompt, what the model says, what the data says.

    The same writer gives the same random numbers to every model, so that two models' answers
    differ by the models alone. Training notices nothing.

    Args:
        when: `before`, `after`, `teacher` or a baseline's name, written into every line.
    """
    said = writer.write(lm, rollouts, dtype=None)
    return [
        {
            "when": when,
            "prompt": shown_prompt(rollout.prompt, writer.tokenizer),
            "completion": _text(own.completion_ids, writer.tokenizer),
            "reference": _text(rollout.completion_ids, writer.tokenizer),
            "truncated": own.truncated,
        }
        for rollout, own in zip(rollouts, said, strict=True)
    ]


def shown_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as a person would quote it: the user's last words, or else the decoded ids."""
    said = prompt.row.get("prompt", prompt.row.get("messages"))
    if isinstance(said, str):
        return said
    if isinstance(said, Sequence):
        turns = cast("Sequence[Mapping[str, Any]]", said)
        words = [turn["content"] for turn in turns if turn.get("role") == "user"]
        if words and isinstance(words[-1], str):
            return words[-1]
    return _text(prompt.student_ids, tokenizer)


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
