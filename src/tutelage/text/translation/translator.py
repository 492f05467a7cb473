"""A batch of the student's tokens as the teacher would write the same text, and the groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import final

import torch

from tutelage.core.crossing import Coverage, Groups
from tutelage.core.records import TokenBatch, View
from tutelage.text.translation.groups import Span, spans_of
from tutelage.text.translation.spelling import Spelling

_NUM_REMEMBERED = 256
"""Completions whose translation is at hand."""


@final
@dataclass(frozen=True, kw_only=True)
class Translation:
    """One completion in both tokenizers."""

    teacher_ids: tuple[int, ...]
    """Empty where the teacher cannot say it."""
    spans: tuple[Span, ...]
    sizes: tuple[int, ...]
    """Bytes that each of the student's tokens says."""


@final
@dataclass(frozen=True, kw_only=True)
class TranslatedBatch:
    """What the teacher reads for a batch."""

    batch: TokenBatch | None
    """In its own tokens, both views alike; None where there is nothing to read."""
    groups: Groups
    coverage: Coverage


@final
@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the student's batch that has something to train."""

    index: int
    completion: list[int]
    trained: Mapping[int, int]
    """Places in the completion that are trained, to their rows among the batch's N."""
    teacher_prompt: list[int]


@final
class Translator:
    """Says in the teacher's tokens what completions say in the student's.

    The student's ids are the truth. The teacher is given its tokenizer's encoding of exactly the
    bytes that those ids stand for, behind its own prompt.

    Args:
        specials: the student's special tokens to the teacher's that do the same.
    """

    def __init__(self, student: Spelling, teacher: Spelling, specials: Mapping[int, int]) -> None:
        self._student = student
        self._teacher = teacher
        self.specials = dict(specials)
        """The student's special tokens to the teacher's."""
        # A row is asked about to cut its step into micro-batches, and again to be read.
        self._remembered = lru_cache(_NUM_REMEMBERED)(self._completion)

    def completion(self, ids: Sequence[int]) -> Translation:
        """One completion, by itself."""
        return self._remembered(tuple(ids))

    def _completion(self, ids: tuple[int, ...]) -> Translation:
        sizes = tuple(self._student.sizes(ids))
        teacher_ids: list[int] = []
        # Both sides say one stream: bytes, and one unit for each special token that both have.
        mine, theirs = list(sizes), list[int]()
        run: list[int] = []
        for at, token in [*enumerate(ids), (len(ids), -1)]:
            ends = token == -1 or (self._student.is_special(token) and token in self.specials)
            if not ends:
                run.append(token)
                continue
            said = self._teacher.encode(self._student.says(run))
            if said is None:
                return Translation(teacher_ids=(), spans=(), sizes=sizes)
            teacher_ids += said
            theirs += self._teacher.sizes(said)
            run = []
            if token != -1:
                teacher_ids.append(self.specials[token])
                theirs.append(1)
                mine[at] = 1
        spans = tuple(spans_of(mine, theirs))
        return Translation(teacher_ids=tuple(teacher_ids), spans=spans, sizes=sizes)

    def batch(self, batch: TokenBatch) -> TranslatedBatch:
        """A batch whose teacher's view has the teacher's own prompts in front.

        A group counts only where all of its tokens on the student's side are trained.
        """
        rows = [*_rows(batch)]
        said = [self.completion(row.completion) for row in rows]
        kept = [(r, t) for r, t in zip(rows, said, strict=True) if t.teacher_ids]
        coverage = Coverage(num_rows=len(rows), num_lost_rows=len(rows) - len(kept))
        groups: list[tuple[int, int, int, int]] = []
        first = 0
        for row, translation in kept:
            own = [span for span in translation.spans if _is_trained(span, row)]
            groups += [
                (
                    row.trained[span.student_first],
                    span.student_count,
                    first + span.teacher_first,
                    span.teacher_count,
                )
                for span in own
            ]
            coverage += _covered(own, translation)
            first += len(translation.teacher_ids)
        for row, translation in zip(rows, said, strict=True):
            num_bytes = sum(translation.sizes[at] for at in row.trained)
            coverage += Coverage(num_tokens=len(row.trained), num_bytes=num_bytes)
        return TranslatedBatch(
            batch=_laid_out(kept, batch) if kept else None,
            groups=_groups(groups, batch.labels.device),
            coverage=coverage,
        )


def _rows(batch: TokenBatch) -> Iterable[_Row]:
    """Rows with a trained token: those behind which the completion's place is known."""
    ids, starts = batch.student.input_ids.tolist(), batch.student.row_starts.tolist()
    teacher_ids, teacher_starts = (
        batch.teacher.input_ids.tolist(),
        batch.teacher.row_starts.tolist(),
    )
    trained: dict[int, dict[int, int]] = {}
    begins: dict[int, tuple[int, int]] = {}
    columns = (
        batch.row_of,
        batch.offset_in_row,
        batch.student.predicts,
        batch.teacher.predicts,
        batch.loss_mask,
    )
    for n, (row, offset, mine, theirs, counts) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        # The token at `offset` is predicted one position before it stands.
        begins[row] = (mine + 1 - offset, theirs + 1 - offset)
        if counts:
            trained.setdefault(row, {})[offset] = n
    for row, places in sorted(trained.items()):
        begin, teacher_begin = begins[row]
        yield _Row(
            index=row,
            completion=ids[begin : starts[row + 1]],
            trained=places,
            teacher_prompt=teacher_ids[teacher_starts[row] : teacher_begin],
        )


def _is_trained(span: Span, row: _Row) -> bool:
    places = range(span.student_first, span.student_first + span.student_count)
    return all(place in row.trained for place in places)


def _covered(spans: Sequence[Span], translation: Translation) -> Coverage:
    def said(span: Span) -> int:
        first = span.student_first
        return sum(translation.sizes[first : first + span.student_count])

    return Coverage(
        num_single=sum(span.is_single for span in spans),
        num_grouped=sum(span.student_count for span in spans),
        num_groups=len(spans),
        num_aligned_bytes=sum(map(said, spans)),
    )


def _laid_out(kept: Sequence[tuple[_Row, Translation]], batch: TokenBatch) -> TokenBatch:
    """The teacher's rows end to end; every completion token is predicted."""
    device = batch.labels.device

    def tensor(numbers: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(numbers), dtype=torch.long, device=device)

    rows = [[*row.teacher_prompt, *said.teacher_ids] for row, said in kept]
    starts = [0, *accumulate(len(row) for row in rows)]
    lengths = [len(said.teacher_ids) for _, said in kept]
    labels = tensor(token for _, said in kept for token in said.teacher_ids)
    view = View(
        input_ids=tensor(token for row in rows for token in row),
        position_ids=tensor(at for row in rows for at in range(len(row))),
        row_starts=tensor(starts),
        # The same rule as in `collate`: a token is predicted one position before it stands.
        predicts=tensor(
            end - length + at - 1
            for end, length in zip(starts[1:], lengths, strict=True)
            for at in range(length)
        ),
    )
    return TokenBatch(
        student=view,
        teacher=view,
        labels=labels,
        loss_mask=torch.ones_like(labels, dtype=torch.bool),
        row_of=tensor(row for row, length in enumerate(lengths) for _ in range(length)),
        offset_in_row=tensor(at for length in lengths for at in range(length)),
        keys=tuple(batch.keys[row.index] for row, _ in kept),
    )


def _groups(found: Sequence[tuple[int, int, int, int]], device: torch.device) -> Groups:
    table = torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 4)
    student_first, student_count, teacher_first, teacher_count = table.unbind(dim=1)
    return Groups(
        student_first=student_first,
        student_count=student_count,
        teacher_first=teacher_first,
        teacher_count=teacher_count,
    )
