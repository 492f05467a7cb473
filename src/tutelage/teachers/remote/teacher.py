"""A teacher on a server: no weights here but perhaps its head, and no forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from tutelage.core.records import TokenBatch
from tutelage.core.targets import HiddenTarget, LogitsTarget, Target, TopKTarget
from tutelage.teachers.memory import AnswerMemory, RowKey
from tutelage.teachers.remote.api import ServerApi, believed
from tutelage.teachers.remote.link import Link
from tutelage.teachers.remote.settings import RemoteTeacherSettings
from tutelage.teachers.remote.wire import Answer, AskedRow, Wanted, rows_asked
from tutelage.teachers.teacher import Teacher


@final
class RemoteTeacher(Teacher):
    """Asks a server for each row of a batch by its token ids, and believes nothing impossible.

    Args:
        wanted: the form of the answers.
        num_entries: rows of the teacher's head, padding included.
        width: numbers in a hidden state.
        device: where the head is kept, which only hidden states need.

    Raises:
        RemoteError: the server does not answer, or serves another model.
    """

    def __init__(
        self,
        api: ServerApi,
        link: Link,
        settings: RemoteTeacherSettings,
        wanted: Wanted,
        *,
        shape: tuple[int, int],
        device: str | torch.device = "cpu",
    ) -> None:
        self._api = api
        self._link = link
        self._settings = settings
        self._wanted = wanted
        entries, width = shape
        self._width = width if wanted.answer == "hidden" else entries
        self.identity: Mapping[str, Any] = api.greet()
        """What tells the served model from others."""
        link.known = self._refuse_other
        room = settings.remember_megabytes * 2**20
        self._memory = AnswerMemory(room) if room else None
        head = api.head(device) if wanted.answer == "hidden" else None
        self._head = None if head is None else replace(head, num_real=wanted.num_real)

    def _refuse_other(self) -> None:
        self._api.greet()

    @override
    def score(self, batch: TokenBatch) -> Target:
        found = self._answers(rows_asked(batch))

        def every(name: str) -> Tensor:
            return torch.cat([one[name] for one in found]).to(batch.labels.device)

        if self._wanted.answer == "hidden":
            assert self._head is not None  # noqa: S101  fetched at the beginning
            return HiddenTarget(hidden=every("hidden"), head=self._head, labels=batch.labels)
        if self._wanted.answer == "logits":
            return LogitsTarget(
                logits=every("logits"), labels=batch.labels, num_real=self._wanted.num_real
            )
        return TopKTarget(
            ids=every("ids"),
            logp=every("logp"),
            tail_logp=every("tail_logp"),
            labels=batch.labels,
            temperature=self._wanted.temperature,
            num_real=self._wanted.num_real,
            rest=self._settings.rest,
        )

    def _answers(self, rows: Sequence[AskedRow]) -> list[Answer]:
        """Of every row: from memory where it was given before, else from the server."""
        keys = [RowKey(content=row.key, predicts=tuple(row.predicts.tolist())) for row in rows]
        memory = self._memory
        known = {} if memory is None else {key: memory.find(key) for key in keys}
        new = [at for at, key in enumerate(keys) if known.get(key) is None]
        size = self._settings.rows_per_request
        pieces = [[rows[at] for at in new[n : n + size]] for n in range(0, len(new), size)]
        asked = [one for piece in self._link.each(self._ask, pieces) for one in piece]
        answers = {keys[at]: answer for at, answer in zip(new, asked, strict=True)}
        for key, answer in answers.items():
            if memory is not None:
                # Cut out of a response, which would be kept as a whole.
                memory.keep(key, {name: tensor.clone() for name, tensor in answer.items()})
        return [known.get(key) or answers[key] for key in keys]

    def _ask(self, rows: Sequence[AskedRow]) -> list[Answer]:
        answers = self._api.ask(rows, self._wanted)
        return [
            believed(answer, row, self._wanted, width=self._width, url=self._link.url)
            for answer, row in zip(answers, rows, strict=True)
        ]
