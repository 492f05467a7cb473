"""What one optimiser step learns from: a window of rows, cut into micro-batches and counted.

Counting comes after the rollouts are there and covers all micro-batches and ranks, so the mean is
over the tokens that are really trained.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.records import Rollout, TokenBatch
from tutelage.rollouts.source import RolloutSource
from tutelage.text.collate import collate, cut, num_tokens
from tutelage.training.policy import OldTokens
from tutelage.training.ranks import Ranks
from tutelage.training.settings import TrainingSettings


@final
@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows for one forward pass, as tensors and as they came."""

    batch: TokenBatch
    rollouts: Sequence[Rollout]
    old: OldTokens | None = None
    """The tokens under the student that drew them; None where that is the student as it is."""
    picked: Bool[Tensor, " B"] | None = None
    """The rows that the teacher is asked about beside a policy; None: without a policy, all."""

    def only(self, rows: Bool[Tensor, " B"]) -> TokenBatch:
        """Some of the rows by themselves, with the same tokens left out."""
        chosen = [self.rollouts[at] for at in rows.nonzero()[:, 0].tolist()]
        batch = collate(chosen, device=self.batch.labels.device)
        return replace(batch, loss_mask=self.batch.loss_mask[rows[self.batch.row_of]])

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
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    """For the log: the shares that decided who writes, and what models wrote, over all ranks."""
    num_picked_tokens: Int[Tensor, ""] | None = None
    """Trained tokens of the rows that are picked for the teacher, over all ranks."""
    num_picked_rows: Int[Tensor, ""] | None = None
    fresh: Sequence[Rollout] = ()
    """The whole batch of this rank, on the first of the steps that it serves."""
    note: str = ""
    """What a person should know about the batch."""

    @property
    def rollouts(self) -> list[Rollout]:
        """This rank's rows of the step."""
        return [row for micro_batch in self.micro_batches for row in micro_batch.rollouts]


Judge = Callable[[Sequence[Rollout]], Sequence[Rollout]]
"""Gives the completions of this rank their rewards and advantages, in their order."""


@final
class Collector:
    """Takes a step's rows from the source. All ranks call it alike."""

    def __init__(
        self,
        source: RolloutSource,
        settings: TrainingSettings,
        ranks: Ranks,
        *,
        judge: Judge | None = None,
        special_ids: Collection[int] = (),
        length: Callable[[Rollout], int] = num_tokens,
    ) -> None:
        self._source = source
        self._judge = judge
        self._special_ids = special_ids
        self._length = length
        self._settings = settings
        self._ranks = ranks
        if settings.tokens_per_step is None and settings.rows_per_step % ranks.num_ranks:
            message = (
                f"training.rows_per_step is {settings.rows_per_step}; it must be a multiple of "
                f"the number of processes, {ranks.num_ranks}. Round it."
            )
            raise ConfigError(message)

    def gather(self) -> tuple[list[Rollout], Mapping[str, float]]:
        """The next batch of this rank, judged, and what there is to log about it.

        Raises:
            NumericsError: a model that writes gave scores that are not finite.
        """
        shares = {clock.name: clock.share for clock in self._source.clocks}
        before, started = self._source.num_generated, time.perf_counter()
        rows = self._take()
        effort = (self._source.num_generated - before, time.perf_counter() - started)
        numbers = {**shares, **self._source.numbers, **self._written(rows, *effort)}
        if self._judge is not None:
            rows = self._judged(rows, self._judge)
            numbers |= self._rewards(rows)
        return rows, numbers

    def _judged(self, rows: Sequence[Rollout], judge: Judge) -> list[Rollout]:
        judged: list[Rollout] = []
        # A row that cannot be judged on one rank must not leave the others waiting.
        self._ranks.together(lambda: judged.extend(judge(rows)))
        return judged

    def _rewards(self, rows: Sequence[Rollout]) -> Mapping[str, float]:
        """The mean reward, and the share of rows that differ from the others of their prompt."""
        rewards = [row.reward for row in rows if row.reward is not None]
        telling = sum(bool(row.advantage) for row in rows)
        here = [math.fsum(rewards), float(len(rewards)), float(telling)]
        counted = torch.tensor(here, dtype=torch.float64, device=self._ranks.device)
        total, num_judged, num_telling = self._ranks.total(counted).tolist()
        if not num_judged:
            return {}
        return {"reward": total / num_judged, "telling_share": num_telling / num_judged}

    def _written(
        self, rows: Sequence[Rollout], num_generated: int, seconds: float
    ) -> Mapping[str, float]:
        """What the rows written by models are like; nothing where there are none."""
        written = [row for row in rows if row.source != "dataset"]
        here = [
            float(len(rows)),
            float(len(written)),
            float(sum(len(row.completion_ids) for row in written)),
            float(sum(row.truncated for row in written)),
            float(sum(row.is_empty for row in written)),
            float(num_generated),
            seconds / self._ranks.num_ranks,
        ]
        counted = torch.tensor(here, dtype=torch.float64, device=self._ranks.device)
        total: list[float] = self._ranks.total(counted).tolist()
        num_rows, num_written, num_tokens, num_truncated, num_empty, generated, seconds = total
        if not num_written:
            return {}
        return {
            "written_share": num_written / num_rows,
            "completion_tokens": num_tokens / num_written,
            "truncated_share": num_truncated / num_written,
            "eos_rate": 1 - num_truncated / num_written,
            "empty_share": num_empty / num_written,
            "generated_tokens": generated,
            "generated_tokens_per_second": generated / max(seconds, 1e-9),
        }

    def window(self, rows: Sequence[Rollout]) -> Window:
        """These rows of this rank, and those that the other ranks bring to the same call."""
        micro_batches = self.micro_batches(rows)
        here = torch.stack([counts(m.batch) for m in micro_batches]).sum(dim=0)
        num_tokens, num_rows = self._ranks.total(here).unbind()
        return Window(micro_batches=micro_batches, num_tokens=num_tokens, num_rows=num_rows)

    def micro_batches(self, rows: Sequence[Rollout]) -> list[MicroBatch]:
        """These rows in forward passes of a bounded size, in their order."""
        budget = self._settings.micro_batch_tokens
        pieces = cut(rows, max_tokens=budget, length=self._length)
        return [MicroBatch(batch=self.batch(piece), rollouts=piece) for piece in pieces]

    def batch(self, rows: Sequence[Rollout]) -> TokenBatch:
        """These rows as one forward pass, without the tokens that are left out."""
        batch = collate(rows, device=self._ranks.device)
        # Left out before anything is counted, so that the mean is over what is trained.
        mask = self._settings.weighting.trained(batch, self._special_ids)
        return batch if mask is batch.loss_mask else replace(batch, loss_mask=mask)

    def _take(self) -> list[Rollout]:
        wanted = self._settings.tokens_per_step
        rows: list[Rollout] = []
        if wanted is None:
            num_rows = self._settings.rows_per_batch // self._ranks.num_ranks
            # A model that fails to write on one rank must not leave the others waiting.
            self._ranks.together(lambda: rows.extend(self._source.take(num_rows)))
            return rows
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


def counts(batch: TokenBatch) -> Int[Tensor, "2"]:
    """Trained tokens, and rows with any."""
    rows = batch.row_of[batch.loss_mask].unique()
    return torch.stack([batch.loss_mask.sum(), rows.new_tensor(rows.numel())])
