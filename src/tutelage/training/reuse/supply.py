"""The windows of a run, one for each optimiser step, several of them from one batch of rollouts.

A step is one optimiser move, whatever it is taken on: clocks, the learning rate and the log go by
moves, and a checkpoint between two moves on one batch holds the parts that are still to come.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, final

import torch

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.objectives.policies import Policy
from tutelage.rollouts.source import RolloutSource
from tutelage.training.collect import Collector, MicroBatch, Window, counts
from tutelage.training.policy import OldTokens
from tutelage.training.ranks import Ranks
from tutelage.training.reuse.lessons import Lesson
from tutelage.training.reuse.parts import parts_of, picks_of
from tutelage.training.settings import TrainingSettings

_SILENT = (
    "In every group of this batch all completions have the same reward, so rewards taught nothing "
    "in its steps. Counted as silent_batches in the log and not said again."
)


@final
@dataclass(frozen=True, kw_only=True)
class Groups:
    """How completions that are compared with each other lie side by side."""

    size: int = 1
    refuse_silence: bool = False
    """A batch whose groups all have equal rewards is an error; otherwise it is counted."""


@final
@dataclass(frozen=True, kw_only=True)
class Reuse:
    """What decides on a batch's steps, beside the settings."""

    seed: int
    groups: Groups
    policy: Policy | None = None
    distils: bool = False
    """Beside the policy, an objective compares the picked rows with a teacher."""
    remember: Callable[[TokenBatch], OldTokens] | None = None
    """The student's own reading of a batch, before it moves."""


@final
class Supply:
    """Hands out one window after the other; all ranks call it alike."""

    def __init__(
        self,
        collector: Collector,
        source: RolloutSource,
        settings: TrainingSettings,
        ranks: Ranks,
        reuse: Reuse,
    ) -> None:
        self._collector = collector
        self._source = source
        self._settings = settings
        self._ranks = ranks
        self._reuse = reuse
        self._unit = reuse.groups.size if settings.cut_batch_by == "groups" else 1
        rows = settings.rows_per_batch // ranks.num_ranks
        if self._is_needed and (
            rows % reuse.groups.size or (rows // self._unit) % settings.updates_per_batch
        ):
            raise ConfigError(
                f"A process collects {rows} rows in groups of {reuse.groups.size}, to be cut by "
                f"{settings.cut_batch_by} into {settings.updates_per_batch} part(s); all must "
                "divide evenly. Change training.rows_per_step or "
                "rollouts.completions_per_prompt, or cut by rows."
            )
        self._num_batches = 0
        self._num_silent = 0
        self._lessons: list[Lesson] = []
        self._parts: deque[list[int]] = deque()

    @property
    def _is_needed(self) -> bool:
        """Whether a batch has anything to remember between its steps."""
        grouped = self._reuse.groups.size > 1
        return grouped or self._reuse.policy is not None or self._settings.steps_per_batch > 1

    def collect(self) -> Window:
        """The next window: what is left of the batch, or a new one.

        Raises:
            NumericsError: a model that writes gave scores that are not finite.
        """
        if not self._is_needed:
            rows, numbers = self._collector.gather()
            return replace(self._collector.window(rows), numbers=numbers, fresh=rows)
        fresh, numbers, note = [], {}, ""
        if not self._parts:
            fresh, numbers = self._collector.gather()
            note = self._silence(numbers)
            if "telling_share" in numbers:
                numbers = {**numbers, "silent_batches": float(self._num_silent)}
            self._begin(fresh)
        num_steps = self._settings.steps_per_batch
        if num_steps > 1:
            numbers = {**numbers, "batch_step": float(num_steps - len(self._parts) + 1)}
        lessons = [self._lessons[at] for at in self._parts.popleft()]
        return replace(self._window(lessons), numbers=numbers, fresh=fresh, note=note)

    def _silence(self, numbers: Mapping[str, float]) -> str:
        """Count a batch whose rewards tell nothing; a note on the first of them."""
        if self._reuse.groups.size == 1 or numbers.get("telling_share") != 0:
            return ""
        if self._reuse.groups.refuse_silence:
            raise DataError(
                "In every group of this batch all completions have the same reward; some must "
                "differ. Choose easier or harder prompts, raise rollouts.temperature or "
                "completions_per_prompt, or set advantages.all_equal: count."
            )
        self._num_silent += 1
        return _SILENT if self._num_silent == 1 else ""

    def window(self, rows: Sequence[Rollout]) -> Window:
        """These rows as a step of their own, by the student as it is; nothing is remembered."""
        if not self._is_needed:
            return self._collector.window(rows)
        return self._window([Lesson(rollout=row) for row in rows])

    def _begin(self, rows: Sequence[Rollout]) -> None:
        settings, reuse = self._settings, self._reuse
        self._num_batches += 1
        picked = [True] * len(rows)
        if reuse.policy is not None:
            # Each rank draws for its own groups; a batch's draws follow from its number alone.
            picked = picks_of(
                rows,
                group_size=reuse.groups.size,
                distill=reuse.policy.distill,
                generator=self._generator("picked", self._ranks.rank),
            )
        for epoch in range(settings.epochs_per_batch):
            self._parts += parts_of(
                len(rows),
                num_parts=settings.updates_per_batch,
                unit=self._unit,
                generator=self._generator("parts", epoch),
            )
        pairs = zip(rows, picked, strict=True)
        self._lessons = [Lesson(rollout=row, picked=chosen) for row, chosen in pairs]
        if reuse.remember is not None and settings.steps_per_batch > 1:
            self._remember(reuse.remember)

    def _remember(self, remember: Callable[[TokenBatch], OldTokens]) -> None:
        """What the student says of every row now, in the very micro-batches of the first epoch.

        So the ratio of its first step is 1 to the last bit: rounding depends on who lies beside
        whom.
        """
        for part in islice(self._parts, self._settings.updates_per_batch):
            places = iter(part)
            for micro in self._collector.micro_batches([self._lessons[at].rollout for at in part]):
                found = remember(micro.batch)
                for row, at in enumerate(islice(places, len(micro.rollouts))):
                    old = found.of_row(micro.batch, row)
                    self._lessons[at] = replace(self._lessons[at], old=old)

    def _window(self, lessons: Sequence[Lesson]) -> Window:
        window = self._collector.window([lesson.rollout for lesson in lessons])
        if self._reuse.policy is None:
            return window
        rest = iter(lessons)
        micro_batches = [self._with_lessons(micro, rest) for micro in window.micro_batches]
        window = replace(window, micro_batches=micro_batches)
        if not self._reuse.distils:
            return window
        here = torch.stack([_picked_counts(micro) for micro in micro_batches]).sum(dim=0)
        num_tokens, num_rows = self._ranks.total(here).unbind()
        return replace(window, num_picked_tokens=num_tokens, num_picked_rows=num_rows)

    def _with_lessons(self, micro: MicroBatch, rest: Iterator[Lesson]) -> MicroBatch:
        lessons = list(islice(rest, len(micro.rollouts)))
        device = micro.batch.labels.device
        olds = [lesson.old for lesson in lessons if lesson.old is not None]
        return replace(
            micro,
            old=OldTokens.joined(olds, device) if olds else None,
            picked=torch.tensor([lesson.picked for lesson in lessons], device=device),
        )

    def _generator(self, *names: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(
            seed_for(self._reuse.seed, "batch", self._num_batches, *names)
        )

    def state_dict(self) -> dict[str, Any]:
        """The source's place, and the rows that still wait for a step of theirs."""
        source = self._source.state_dict()
        if not self._is_needed:
            return source
        waiting = sorted({at for part in self._parts for at in part})
        place = {at: index for index, at in enumerate(waiting)}
        return {
            "source": source,
            "num_batches": self._num_batches,
            "num_silent": self._num_silent,
            "lessons": [self._lessons[at].state() for at in waiting],
            "parts": [[place[at] for at in part] for part in self._parts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, in the middle of a batch if need be."""
        if not self._is_needed:
            self._source.load_state_dict(state)
            return
        self._source.load_state_dict(state["source"])
        self._num_batches = state["num_batches"]
        self._num_silent = state["num_silent"]
        self._lessons = [Lesson.from_state(lesson) for lesson in state["lessons"]]
        self._parts = deque([int(at) for at in part] for part in state["parts"])


def _picked_counts(micro: MicroBatch) -> torch.Tensor:
    """Trained tokens of the picked rows, and picked rows with any."""
    assert micro.picked is not None  # noqa: S101  the caller has put it there
    batch = micro.batch
    kept = batch.loss_mask & micro.picked[batch.row_of]
    return counts(replace(batch, loss_mask=kept))
