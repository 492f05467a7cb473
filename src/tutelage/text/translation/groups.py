"""The smallest pieces of a text on whose ends two tokenizations agree."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Span:
    """Tokens of both sides that say the same, each given by its place in its own completion."""

    student_first: int
    student_count: int
    teacher_first: int
    teacher_count: int

    @property
    def is_single(self) -> bool:
        """One token on each side."""
        return self.student_count == self.teacher_count == 1


def spans_of(student_sizes: Sequence[int], teacher_sizes: Sequence[int]) -> list[Span]:
    """Cut two tokenizations of one text wherever both have a token that ends there.

    No span can be cut further, and none overlaps another. A token of size 0 says nothing that the
    other side could say too: it is in no span, and a span that it would stand in the middle of is
    left out, for what follows it was said with it in view.

    Args:
        student_sizes: how much of the text each token says, such as its bytes.
        teacher_sizes: the same for the other side; both add up to the same.
    """
    student, teacher = _Side(student_sizes), _Side(teacher_sizes)
    assert student.total == teacher.total  # noqa: S101  both say one text
    cuts = [0, *sorted(set(student.ends) & set(teacher.ends))]
    found: list[Span] = []
    for start, end in pairwise(cuts):
        mine, theirs = student.between(start, end), teacher.between(start, end)
        if mine is not None and theirs is not None:
            found.append(
                Span(
                    student_first=mine[0],
                    student_count=mine[1],
                    teacher_first=theirs[0],
                    teacher_count=theirs[1],
                )
            )
    return found


class _Side:
    """The tokens of one side that say something, and where each of them ends."""

    def __init__(self, sizes: Sequence[int]) -> None:
        ends = list(accumulate(sizes))
        self.total = ends[-1] if ends else 0
        self._places = [at for at, size in enumerate(sizes) if size]
        self.ends = [ends[at] for at in self._places]

    def between(self, start: int, end: int) -> tuple[int, int] | None:
        """First and number of the tokens that say this stretch; None where others interrupt."""
        before = bisect_left(self.ends, start + 1)
        last = bisect_left(self.ends, end)
        first, count = self._places[before], last - before + 1
        return (first, count) if self._places[last] - first + 1 == count else None
