"""A teacher that answers with a forward pass, and remembers its answers while there is room."""

import dataclasses
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import NumericsError
from tutelage.core.records import TokenBatch, View
from tutelage.core.targets import HiddenTarget
from tutelage.models.causal_lm import CausalLM
from tutelage.teachers.memory import HiddenMemory, RowKey
from tutelage.teachers.teacher import Teacher


@final
class LiveTeacher(Teacher):
    """A frozen model, asked for its last hidden states; its head travels beside them, uncopied.

    With a memory, each row is read by itself, so that its hidden states are a function of the row
    alone: neither its neighbours in the batch, nor what is remembered already, nor a run that was
    interrupted and forgot everything changes one bit of them. Without one (`remember_bytes=0`)
    the whole batch is read at once.

    Args:
        lm: the teacher. It is switched to evaluation mode, and its weights to no gradients.
        num_real: vocabulary entries that both models know; None: all of them.
        dtype: matrix products in this type (autocast); None: in the type of the weights, whatever
            autocast the caller is in.
        remember_bytes: how much memory may hold hidden states for rows that come again.
    """

    def __init__(
        self,
        lm: CausalLM,
        *,
        num_real: int | None = None,
        dtype: torch.dtype | None = None,
        remember_bytes: int = 0,
    ) -> None:
        self._lm = lm.eval().requires_grad_(requires_grad=False)
        self._num_real = num_real
        self._dtype = dtype
        self._memory = HiddenMemory(remember_bytes) if remember_bytes else None
        self.num_scored_rows = 0
        """Rows that cost a forward pass."""

    @property
    def num_remembered_rows(self) -> int:
        """Rows answered from memory so far."""
        return self._memory.num_hits if self._memory else 0

    @property
    def remembered_bytes(self) -> int:
        """Memory held by remembered rows."""
        return self._memory.num_bytes if self._memory else 0

    @override
    @torch.no_grad()
    def score(self, batch: TokenBatch) -> HiddenTarget:
        self._lm.eval()
        if self._memory is None:
            self.num_scored_rows += batch.num_rows
            hidden = self._read(batch.teacher)
        else:
            hidden = self._read_or_remember(batch, self._memory)
        _refuse_nan(hidden, batch)
        head = dataclasses.replace(self._lm.head, num_real=self._num_real)
        return HiddenTarget(hidden=hidden, head=head, labels=batch.labels)

    def _read(self, view: View) -> Float[Tensor, "N W"]:
        device = view.input_ids.device.type
        with torch.autocast(device, dtype=self._dtype, enabled=self._dtype is not None):
            return self._lm.hidden(view)[view.predicts]

    def _read_or_remember(self, batch: TokenBatch, memory: HiddenMemory) -> Float[Tensor, "N W"]:
        views = views_of_rows(batch.teacher)
        keys = [
            RowKey(content=key, predicts=tuple(view.predicts.tolist()))
            for key, view in zip(batch.keys, views, strict=True)
        ]
        device = batch.labels.device
        hidden: list[Tensor] = []
        for key, view in zip(keys, views, strict=True):
            found = memory.find(key)
            if found is None:
                found = self._read(view)
                self.num_scored_rows += 1
                memory.keep(key, found)
            hidden.append(found.to(device))
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
