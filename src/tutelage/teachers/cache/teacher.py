"""A teacher that answers from a cache: no weights but its head, and no forward pass."""

from typing import final

import torch
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import Head, Rest, Target
from tutelage.teachers.cache.answers import answer
from tutelage.teachers.cache.folder import CacheFolder, Part, answers_of
from tutelage.teachers.teacher import Teacher


@final
class CachedTeacher(Teacher):
    """Finds each row of a batch by its content, whatever its place in the batch or epoch.

    Args:
        part: rows to train on, in the cache's own form, or rows to measure on, as hidden states.
        rest: what becomes of the entries that top-k rows lack; None: what suits the objective.
        device: where the head is kept, which only hidden states need.

    Raises:
        DataError: the cache is missing or damaged.
    """

    def __init__(
        self,
        cache: CacheFolder,
        *,
        part: Part = "training",
        rest: Rest | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._cache = cache
        self._store = cache.store(part)
        self._settings = answers_of(cache.identity, part)
        self._rest: Rest | None = rest
        hidden = self._settings.answer == "hidden"
        self._head: Head | None = cache.head(device) if hidden else None

    @override
    def score(self, batch: TokenBatch) -> Target:
        found = [self._store.read(key) for key in batch.keys]
        trained = torch.bincount(batch.row_of.cpu(), minlength=batch.num_rows).tolist()
        for key, (_, num_tokens), wanted in zip(batch.keys, found, trained, strict=True):
            if num_tokens != wanted:
                raise DataError(
                    f"The row with key {key} has {wanted} trained tokens and {num_tokens} in the "
                    f"cache {self._cache.root}; they must be as many. Make the cache again."
                )
        return answer(
            [payload for payload, _ in found],
            self._settings,
            batch,
            head=self._head,
            num_real=self._cache.identity.num_real,
            rest=self._rest,
        )
