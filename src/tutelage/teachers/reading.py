"""Reading a batch through the teacher's view: hidden states, and what is remembered of them."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.errors import NumericsError
from tutelage.core.records import TokenBatch, View
from tutelage.core.targets import Head, HiddenTarget
from tutelage.models.causal_lm import CausalLM
from tutelage.teachers.memory import AnswerMemory, RowKey


@final
class Reader:
    """Asks a model for the hidden states of a batch's teacher view; its head is borrowed.

    With a memory, each row is read by itself, so that its hidden states are a function of the row
    alone: neither its neighbours in the batch, nor what is remembered already, nor a run that was
    interrupted and forgot everything changes one bit of them. Without one (`remember_bytes=0`)
    the whole batch is read at once.

    Args:
        num_real: vocabulary entries that both models know; None: all of them.
        dtype: matrix products in this type (autocast); None: in the type of the weights, whatever
            autocast the caller is in.
        remember_bytes: how much memory may hold hidden states for rows that come again.
    """

    def __init__(
        self,
        *,
        num_real: int | None = None,
        dtype: torch.dtype | None = None,
        remember_bytes: int = 0,
    ) -> None:
        self._num_real = num_real
        self._dtype = dtype
        self.memory = AnswerMemory(remember_bytes) if remember_bytes else None
        """None where nothing is remembered."""
        self.num_scored_rows = 0
        """Rows that cost a forward pass."""

    @torch.no_grad()
    def read(self, lm: CausalLM, batch: TokenBatch) -> HiddenTarget:
        """The model's answer, in the mode that it is in.

        Raises:
            NumericsError: a hidden state is not finite.
        """
        if self.memory is None:
            self.num_scored_rows += batch.num_rows
            hidden = self._hidden(lm, batch.teacher)
        else:
            hidden = self._hidden_or_remembered(lm, batch, self.memory)
        _refuse_nan(hidden, batch)
        return HiddenTarget(hidden=hidden, head=self._head(lm), labels=batch.labels)

    def _head(self, lm: CausalLM) -> Head:
        """The model's own, cut off from its gradients."""
        head = lm.head
        bias = None if head.bias is None else head.bias.detach()
        return dataclasses.replace(
            head, weight=head.weight.detach(), bias=bias, num_real=self._num_real
        )

    def _hidden(self, lm: CausalLM, view: View) -> Float[Tensor, "N W"]:
        device = view.input_ids.device.type
        with torch.autocast(device, dtype=self._dtype, enabled=self._dtype is not None):
            return lm.hidden(view)[view.predicts]

    def _hidden_or_remembered(
        self, lm: CausalLM, batch: TokenBatch, memory: AnswerMemory
    ) -> Float[Tensor, "N W"]:
        views = views_of_rows(batch.teacher)
        keys = [
            RowKey(content=key, predicts=tuple(view.predicts.tolist()))
            for key, view in zip(batch.keys, views, strict=True)
        ]
        device = batch.labels.device
        hidden: list[Tensor] = []
        for key, view in zip(keys, views, strict=True):
            kept = memory.find(key)
            if kept is None:
                kept = {"hidden": self._hidden(lm, view)}
                self.num_scored_rows += 1
                memory.keep(key, kept)
            hidden.append(kept["hidden"].to(device))
        return torch.cat(hidden)


def views_of_rows(view: View) -> list[View]:
    """One view for each row, reading that row alone."""
    starts: list[int] = view.row_starts.tolist()
    # Rows lie in order, so the positions asked about do too: these are the cuts between rows.
    cuts: list[int] = torch.searchsorted(view.predicts, view.row_starts).tolist()
    return [
        View(
            input_ids=view.input_ids[start:end],
            position_ids=view.position_ids[start:end],
            row_starts=view.row_starts[row : row + 2] - start,
            predicts=view.predicts[cuts[row] : cuts[row + 1]] - start,
        )
        for row, (start, end) in enumerate(pairwise(starts))
    ]


def rows_of_batch(batch: TokenBatch, rows: Sequence[int]) -> TokenBatch:
    """The batch of some of the rows alone, in the batch's order."""
    same = batch.teacher is batch.student
    student = _joined([views_of_rows(batch.student)[row] for row in rows])
    teacher = student if same else _joined([views_of_rows(batch.teacher)[row] for row in rows])
    kept = torch.isin(batch.row_of, torch.tensor(list(rows), device=batch.row_of.device))
    place = torch.zeros(batch.num_rows, dtype=torch.long, device=batch.row_of.device)
    place[list(rows)] = torch.arange(len(rows), device=place.device)
    drawn, worth = batch.sampled_logp, batch.advantages
    return TokenBatch(
        student=student,
        teacher=teacher,
        labels=batch.labels[kept],
        loss_mask=batch.loss_mask[kept],
        row_of=place[batch.row_of[kept]],
        offset_in_row=batch.offset_in_row[kept],
        keys=tuple(batch.keys[row] for row in rows),
        sampled_logp=None if drawn is None else drawn[kept],
        advantages=None if worth is None else worth[kept],
    )


def _joined(views: Sequence[View]) -> View:
    """Rows laid end to end."""
    lengths = torch.tensor([len(view.input_ids) for view in views])
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    device = views[0].input_ids.device
    predicts = [view.predicts + start for view, start in zip(views, starts.tolist(), strict=False)]
    return View(
        input_ids=torch.cat([view.input_ids for view in views]),
        position_ids=torch.cat([view.position_ids for view in views]),
        row_starts=starts.to(device),
        predicts=torch.cat(predicts),
    )


def _refuse_nan(hidden: Float[Tensor, "N W"], batch: TokenBatch) -> None:
    broken = ~hidden.isfinite().all(dim=-1)
    if not bool(broken.any()):
        return
    token = int(broken.nonzero()[0, 0])
    row, place = int(batch.row_of[token]), int(batch.offset_in_row[token])
    raise NumericsError(
        f"The teacher's hidden state for row {row} of the batch (key {batch.keys[row]}), "
        f"completion token {place}, is nan or infinite; it must be finite. "
        "Check the teacher's weights, or give it a wider dtype (teacher.dtype: float32)."
    )
