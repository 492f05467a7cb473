"""The words of two vocabularies that say the same."""

from collections.abc import Mapping

import torch

from tutelage.core.crossing import SharedWords
from tutelage.text.translation.spelling import Spelling


def shared_words(student: Spelling, teacher: Spelling, specials: Mapping[int, int]) -> SharedWords:
    """Pairs of entries that stand for the same bytes, or for the same special token.

    One to one: where several tokens of a side say the same, the first stands for them all.
    """
    pairs = {mine: teacher.ids_of.get(said) for said, mine in student.ids_of.items()}
    both = {mine: theirs for mine, theirs in pairs.items() if theirs is not None}
    taken = set(both.values())
    for mine, theirs in specials.items():
        if theirs not in taken:
            both[mine] = theirs
            taken.add(theirs)
    ids = sorted(both)

    def rest(count: int, known: set[int]) -> list[int]:
        return [one for one in range(count) if one not in known]

    def tensor(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long)

    return SharedWords(
        student_ids=tensor(ids),
        teacher_ids=tensor([both[one] for one in ids]),
        student_rest=tensor(rest(student.num_entries, set(ids))),
        teacher_rest=tensor(rest(teacher.num_entries, taken)),
        num_student=student.num_entries,
    )
