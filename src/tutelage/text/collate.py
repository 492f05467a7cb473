"""Rollouts into the tensors of a step: the one shift, the one packing.

The output at a position predicts the token behind it. Here, and nowhere else, that is written down
as indices; everybody else reads `View.predicts`. Which tokens are trained follows from lengths
(and `Rollout.trained`), never from a token's id: the padding id is often the end of the text too.
"""

import hashlib
import math
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout, TokenBatch, View


def collate(rollouts: Sequence[Rollout], *, device: str | torch.device = "cpu") -> TokenBatch:
    """Lay the rows of one micro-batch end to end, once for each model that reads them.

    A rollout whose prompt has no teacher ids is read alike by both, and a batch of only such
    rollouts has one view, shared.

    Raises:
        DataError: for a row without a prompt, since nothing would predict its first token.
    """
    for rollout in rollouts:
        if not rollout.prompt.student_ids or not _teacher_ids(rollout):
            where = rollout.prompt.name or "A row"
            message = (
                f"{where} is a prompt without tokens; it must hold at least one. "
                "Fill the column, or use a tokenizer that begins with a BOS token."
            )
            raise DataError(message)
    trained = [_trained_offsets(rollout) for rollout in rollouts]
    student = _view([r.prompt.student_ids for r in rollouts], rollouts, trained, device)
    teacher = student
    if any(_teacher_ids(r) != r.prompt.student_ids for r in rollouts):
        teacher = _view([_teacher_ids(r) for r in rollouts], rollouts, trained, device)
    labels = [r.completion_ids[at] for r, row in zip(rollouts, trained, strict=True) for at in row]
    return TokenBatch(
        student=student,
        teacher=teacher,
        labels=_tensor(labels, device),
        loss_mask=torch.ones(len(labels), dtype=torch.bool, device=device),
        row_of=_tensor([index for index, row in enumerate(trained) for _ in row], device),
        offset_in_row=_tensor([at for row in trained for at in row], device),
        keys=tuple(key_of(rollout) for rollout in rollouts),
        sampled_logp=_sampled_logp(rollouts, trained, device),
        advantages=_advantages(rollouts, trained, device),
    )


def num_tokens(rollout: Rollout) -> int:
    """Tokens of the row, in the longer of its two views."""
    prompt = max(len(rollout.prompt.student_ids), len(_teacher_ids(rollout)))
    return prompt + len(rollout.completion_ids)


def cut(
    rollouts: Sequence[Rollout],
    *,
    max_tokens: int,
    length: Callable[[Rollout], int] = num_tokens,
) -> list[list[Rollout]]:
    """Micro-batches of neighbours, each of at most `max_tokens` tokens in either view.

    The order is kept, so the same rollouts are always cut the same way. A row that is longer than
    the budget is a micro-batch by itself.

    Args:
        length: tokens of a row, where a model reads it in other tokens than the rollout's own.
    """
    batches: list[list[Rollout]] = []
    room = 0
    for rollout in rollouts:
        size = length(rollout)
        if not batches or size > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(rollout)
        room -= size
    return batches


def _view(
    prompts: Sequence[tuple[int, ...]],
    rollouts: Sequence[Rollout],
    trained: Sequence[Sequence[int]],
    device: str | torch.device,
) -> View:
    rows = [prompt + r.completion_ids for prompt, r in zip(prompts, rollouts, strict=True)]
    starts = [0, *accumulate(len(row) for row in rows)]
    predicts = [
        # The token at start + len(prompt) + at is predicted one position earlier.
        start + len(prompt) + at - 1
        for start, prompt, offsets in zip(starts, prompts, trained, strict=False)
        for at in offsets
    ]
    return View(
        input_ids=_tensor([token for row in rows for token in row], device),
        position_ids=_tensor([at for row in rows for at in range(len(row))], device),
        row_starts=_tensor(starts, device),
        predicts=_tensor(predicts, device),
    )


def _sampled_logp(
    rollouts: Sequence[Rollout],
    trained: Sequence[Sequence[int]],
    device: str | torch.device,
) -> torch.Tensor | None:
    if all(rollout.sampled_logp is None for rollout in rollouts):
        return None
    numbers: list[float] = []
    for rollout, offsets in zip(rollouts, trained, strict=True):
        drawn = rollout.sampled_logp
        if drawn is not None and len(drawn) != len(rollout.completion_ids):
            message = (
                f"{rollout.prompt.name or 'A row'} has {len(drawn)} sampled log-probabilities; it "
                f"must have {len(rollout.completion_ids)}, one for each completion token. "
                "Keep them together with the ids they belong to."
            )
            raise DataError(message)
        numbers += [math.nan if drawn is None else drawn[at] for at in offsets]
    return torch.tensor(numbers, dtype=torch.float32).to(device)


def _advantages(
    rollouts: Sequence[Rollout],
    trained: Sequence[Sequence[int]],
    device: str | torch.device,
) -> torch.Tensor | None:
    if all(rollout.advantage is None for rollout in rollouts):
        return None
    numbers = [
        math.nan if rollout.advantage is None else rollout.advantage
        for rollout, offsets in zip(rollouts, trained, strict=True)
        for _ in offsets
    ]
    return torch.tensor(numbers, dtype=torch.float32).to(device)


def _trained_offsets(rollout: Rollout) -> list[int]:
    offsets = range(len(rollout.completion_ids))
    if rollout.trained is None:
        return list(offsets)
    return [at for at, kept in zip(offsets, rollout.trained, strict=True) if kept]


def _teacher_ids(rollout: Rollout) -> tuple[int, ...]:
    own = rollout.prompt.teacher_ids
    return rollout.prompt.student_ids if own is None else own


def key_of(rollout: Rollout) -> str:
    """A row's content: the same ids, seen and trained alike, have the same key in any batch."""
    digest = hashlib.blake2b(digest_size=16)
    parts = (
        rollout.prompt.student_ids,
        _teacher_ids(rollout),
        rollout.completion_ids,
        _trained_offsets(rollout),
    )
    for part in parts:
        digest.update(array("q", (len(part), *part)).tobytes())
    return digest.hexdigest()


def _tensor(numbers: Sequence[int], device: str | torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long).to(device)
