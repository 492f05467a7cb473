"""What one optimiser step learns from: a window of rows, cut into micro-batches and counted.

Counting comes after the rollouts are there and covers all micro-batches and ranks, so the mean is
over the tokens that are really trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.records import Rollout, TokenBatch
from tutelage.rollouts.source import RolloutSource
from tutelage.text.collate import collate, cut
from tutelage.training.ranks import Ranks
from tutelage.training.settings import TrainingSettings


@final
@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows for one forward pass, as tensors and as they came."""

    batch: TokenBatch
    rollouts: Sequence[Rollout]

    def name(self, row: int) -> str:
        """What to call a row in a message: where it came from, or its content key."""
        return self.rollouts[row].prompt.name or f"key {self.batch.keys[row]}"


@final
@dataclass(frozen=True, kw_only=True)
class Window:
    """This rank's micro-batches of one step, and how much the whole step holds on all ranks."""

    micro_batches: Sequence[MicroBatch]
    num_tokens: Int[Tensor, ""]
    """Trained tokens, over all micro-batches and ranks."""
    num_rows: Int[Tensor, ""]
    """Rows with at least one trained token, over all micro-batches and ranks."""


@final
class Collector:
    """Takes a step's rows from the source. All ranks call it alike."""

    def __init__(self, source: RolloutSource, settings: TrainingSettings, ranks: Ranks) -> None:
        self._source = source
        self._settings = settings
        self._ranks = ranks
        if settings.tokens_per_step is None and settings.rows_per_step % ranks.num_ranks:
            message = (
                f"training.rows_per_step is {settings.rows_per_step}; it must be a multiple of "
                f"the number of processes, {ranks.num_ranks}. Round it."
            )
            raise ConfigError(message)

    def collect(self) -> Window:
        """The next window: rollouts first, then counting."""
        return self.window(self._take())

    def window(self, rows: Sequence[Rollout]) -> Window:
        """These rows of this rank, and those that the other ranks bring to the same call."""
        pieces = cut(rows, max_tokens=self._settings.micro_batch_tokens)
        micro_batches = [
            MicroBatch(batch=collate(piece, device=self._ranks.device), rollouts=piece)
            for piece in pieces
        ]
        here = torch.stack([_counts(m.batch) for m in micro_batches]).sum(dim=0)
        num_tokens, num_rows = self._ranks.total(here).unbind()
        return Window(micro_batches=micro_batches, num_tokens=num_tokens, num_rows=num_rows)

    def _take(self) -> list[Rollout]:
        wanted = self._settings.tokens_per_step
        if wanted is None:
            return self._source.take(self._settings.rows_per_step // self._ranks.num_ranks)
        rows: list[Rollout] = []
        num_tokens = 0
        # One row a rank at a time: all ranks must take the same number from the source.
        while num_tokens < wanted:
            taken = self._source.take(1)
            rows += taken
            here = torch.tensor(sum(_num_trained(row) for row in taken), device=self._ranks.device)
            num_tokens += int(self._ranks.total(here))
            if num_tokens == 0 and len(rows) >= len(self._source):
                break
        return rows


def _num_trained(row: Rollout) -> int:
    return len(row.completion_ids) if row.trained is None else sum(row.trained)


def _counts(batch: TokenBatch) -> Int[Tensor, "2"]:
    """Trained tokens, and rows with any."""
    rows = batch.row_of[batch.loss_mask].unique()
    return torch.stack([batch.loss_mask.sum(), rows.new_tensor(rows.numel())])
