"""The one thread that reads rows through the served model, whoever asks and however many."""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.errors import DataError, OutputError
from tutelage.core.records import View
from tutelage.core.targets import Head, HiddenTarget
from tutelage.models import CausalLM
from tutelage.objectives.plain import plain_logits
from tutelage.teachers.cache import AnswerSettings, stored
from tutelage.teachers.remote.wire import Answer, AskedRow, Wanted

_MOST_WAITING = 256


@final
@dataclass(frozen=True, kw_only=True)
class _Job:
    rows: Sequence[AskedRow]
    wanted: Wanted
    answers: Future[list[Answer]]


@final
class Worker:
    """Answers questions in the order they come.

    Args:
        batch_tokens: rows, of several questions too, are read side by side up to so many tokens;
            0 reads each by itself, so that its numbers are a function of the row alone.
        longest: tokens that a row may have; 0: any number.
    """

    def __init__(self, lm: CausalLM, *, batch_tokens: int = 0, longest: int = 0) -> None:
        self._lm = lm.eval().requires_grad_(requires_grad=False)
        # In the precision that probabilities are made in; the model's own where that is it.
        self._head = _in_float32(lm.head)
        self._batch_tokens = batch_tokens
        self._longest = longest
        self._jobs: queue.Queue[_Job] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def submit(self, rows: Sequence[AskedRow], wanted: Wanted) -> Future[list[Answer]]:
        """The answers of these rows, once they are there. A cancelled question is not read.

        Raises:
            DataError: a row that the model cannot read, or an impossible form of answer.
            OutputError: too many questions are waiting.
        """
        self._refuse(rows, wanted)
        job = _Job(rows=rows, wanted=wanted, answers=Future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full as error:
            raise OutputError(f"{_MOST_WAITING} requests are waiting; ask again later.") from error
        return job.answers

    def _refuse(self, rows: Sequence[AskedRow], wanted: Wanted) -> None:
        entries = self._head.weight.shape[0]
        if not rows or wanted.num_real > entries:
            raise DataError(
                f"{len(rows)} rows over {wanted.num_real} entries are asked for; it must be one "
                f"row or more, over up to {entries}."
            )
        for number, row in enumerate(rows):
            length = len(row.ids)
            if not length or (self._longest and length > self._longest):
                raise DataError(
                    f"Row {number} has {length} tokens; it must have 1 to {self._longest or 'any'}."
                )
            if int(row.ids.min()) < 0 or int(row.ids.max()) >= entries:
                raise DataError(f"Row {number} has an id that is not among the {entries} entries.")
            if len(row.predicts) and not 0 <= int(row.predicts.min()) <= int(row.predicts.max()):
                raise DataError(f"Row {number} asks for a position before its first.")
            if len(row.predicts) and int(row.predicts.max()) >= length:
                raise DataError(f"Row {number} asks for a position behind its last.")

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            # Whoever waits by now is read with it, up to a batch.
            waiting = sum(len(row.ids) for row in jobs[0].rows)
            while waiting < self._batch_tokens:
                try:
                    jobs.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
                waiting += sum(len(row.ids) for row in jobs[-1].rows)
            self._answer([job for job in jobs if job.answers.set_running_or_notify_cancel()])

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """Read all rows, then give each question its own; an error is every question's."""
        try:
            hidden = self._read([row for job in jobs for row in job.rows])
            for job in jobs:
                found = [self._form(next(hidden), job.wanted) for _ in job.rows]
                job.answers.set_result(found)
        except Exception as error:  # noqa: BLE001  the thread must go on for those that come
            for job in jobs:
                if not job.answers.done():
                    job.answers.set_exception(error)

    @torch.no_grad()
    def _read(self, rows: Sequence[AskedRow]) -> Iterator[Float[Tensor, "N W"]]:
        """The hidden states asked for, row by row."""
        for piece in _cut(rows, self._batch_tokens):
            view = _view(piece, self._lm.device)
            hidden = self._lm.hidden(view)[view.predicts]
            yield from hidden.split([len(row.predicts) for row in piece])

    @torch.no_grad()
    def _form(self, hidden: Float[Tensor, "N W"], wanted: Wanted) -> Answer:
        if wanted.answer == "hidden":
            return {"hidden": hidden.cpu().contiguous()}
        if wanted.answer == "logits":
            return {"logits": plain_logits(hidden, self._head, torch.float32).cpu()}
        head = replace(self._head, num_real=wanted.num_real)
        settings = AnswerSettings(
            answer="top_k",
            num_entries=wanted.num_entries,
            temperature=wanted.temperature,
            dtype="float32",
        )
        found = stored(HiddenTarget(hidden=hidden, head=head), settings, key="")
        return {name: tensor for name, tensor in found.items() if name != "log_sum_exp"}


def _cut(rows: Sequence[AskedRow], max_tokens: int) -> list[list[AskedRow]]:
    """Neighbours up to so many tokens; a longer row by itself."""
    pieces: list[list[AskedRow]] = []
    room = 0
    for row in rows:
        if not pieces or len(row.ids) > room:
            pieces.append([])
            room = max_tokens
        pieces[-1].append(row)
        room -= len(row.ids)
    return pieces


def _view(rows: Sequence[AskedRow], device: torch.device) -> View:
    lengths = torch.tensor([len(row.ids) for row in rows])
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    predicts = [row.predicts + start for row, start in zip(rows, starts.tolist(), strict=False)]
    return View(
        input_ids=torch.cat([row.ids for row in rows]).to(device),
        position_ids=torch.cat([torch.arange(len(row.ids)) for row in rows]).to(device),
        row_starts=starts.to(device),
        predicts=torch.cat(predicts).to(device),
    )


def _in_float32(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach().float()
    return replace(head, weight=head.weight.detach().float(), bias=bias)
