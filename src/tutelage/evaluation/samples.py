"""What a model says to held-out prompts, as text for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Prompt, Rollout
from tutelage.evaluation.undisturbed import undisturbed
from tutelage.models import CausalLM
from tutelage.rollouts.engines import Sampling, write


def generate_samples(
    lm: CausalLM,
    rollouts: Sequence[Rollout],
    *,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    seed: int,
    when: str,
) -> list[dict[str, Any]]:
    """One line of samples.jsonl for each row: its prompt, what the model says, what the data says.

    The same seed gives the same random numbers to every model, so that two models' answers differ
    by the models alone. Training notices nothing.

    Args:
        when: `before`, `after`, `teacher` or a baseline's name, written into every line.
    """
    prompts = [rollout.prompt.student_ids for rollout in rollouts]
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(lm):
        completions = write(lm, prompts, sampling, generator=generator)
    return [
        {
            "when": when,
            "prompt": shown_prompt(rollout.prompt, tokenizer),
            "completion": _text(completion.ids, tokenizer),
            "reference": _text(rollout.completion_ids, tokenizer),
            "truncated": completion.truncated,
        }
        for rollout, completion in zip(rollouts, completions, strict=True)
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
