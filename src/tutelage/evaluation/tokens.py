"""Held-out rows token by token: where student and teacher part ways, for the report."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Rollout, TokenBatch
from tutelage.evaluation.divergence import EvaluationOptions, measured, sides_of
from tutelage.evaluation.samples import shown_prompt
from tutelage.evaluation.undisturbed import undisturbed
from tutelage.models import CausalLM
from tutelage.objectives.fused import Measures
from tutelage.teachers import Teacher


def token_rows(
    student: CausalLM,
    teacher: Teacher,
    rows: Iterable[tuple[TokenBatch, Sequence[Rollout]]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    when: str,
    options: EvaluationOptions | None = None,
) -> list[dict[str, Any]]:
    """One line of tokens.jsonl for each row: its tokens, the divergence, and both favourites.

    Args:
        rows: each batch beside the rollouts it was collated from, in their order.
        when: `before` or `after`, written into every line.
    """
    lines: list[dict[str, Any]] = []
    with undisturbed(student):
        for batch, rollouts in rows:
            sides = sides_of(student, teacher, batch, options=options)
            found = measured(sides, batch, options=options).measures
            for row, rollout in enumerate(rollouts):
                at = (batch.row_of == row) & batch.loss_mask
                columns = _columns(found, batch.labels, at, tokenizer)
                prompt = shown_prompt(rollout.prompt, tokenizer)
                lines.append({"row": len(lines), "when": when, "prompt": prompt, **columns})
    return lines


def _columns(
    found: Measures, labels: Tensor, at: Tensor, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    def texts(ids: Tensor | None) -> list[str]:
        return [] if ids is None else token_texts(ids[at].tolist(), tokenizer)

    def numbers(values: Tensor | None) -> list[float]:
        return [] if values is None else values[at].double().tolist()

    def shares(logp: Tensor | None) -> list[float]:
        return numbers(None if logp is None else torch.exp(logp.double()))

    return {
        "tokens": texts(labels),
        "forward_kl": numbers(found.forward_kl),
        "student_top": texts(found.student_top),
        "teacher_top": texts(found.teacher_top),
        "student_label_p": shares(found.student_label_logp),
        "teacher_label_p": shares(found.teacher_label_logp),
    }


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token's own text, special tokens and leading spaces included."""
    names = [str(tokenizer.convert_ids_to_tokens(token)) for token in ids]
    texts = [str(tokenizer.decode([token])) for token in ids]
    # SentencePiece tokenizers drop the space that opens a text.
    return [
        f" {text}" if name.startswith("\u2581") and not text.startswith(" ") else text
        for name, text in zip(names, texts, strict=True)
    ]
