"""Groups of tokens with random hidden states, and what is computed of them one float at a time."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tutelage.core.crossing import Coverage, Groups, SharedWords
from tutelage.core.targets import Head, HiddenTarget, OtherVocabularyTarget
from tutelage.objectives.plain import plain_logits

DOUBLE: Any = {"dtype": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Problem:
    hidden: Tensor
    head: Head
    target: OtherVocabularyTarget
    weights: Tensor


def problem(*, bias: bool = False, softcap: float | None = None, seed: int = 0) -> Problem:
    """Nine tokens of a student with 11 words, eight of a teacher with 14, five groups.

    Both heads have rows behind their words, which count for nothing. Two tokens of the student
    and one of the teacher are in no group.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, **DOUBLE)

    def ids(count: int, below: int) -> Tensor:
        return torch.randint(0, below, (count,), generator=generator)

    head = Head(weight=random(13, 4), bias=random(13) if bias else None, softcap=softcap, scale=0.9)
    teacher = HiddenTarget(
        hidden=random(8, 5), head=Head(weight=random(17, 5), num_real=14), labels=ids(8, 14)
    )
    groups = Groups(
        student_first=torch.tensor([0, 1, 4, 6, 7]),
        student_count=torch.tensor([1, 3, 1, 1, 2]),
        teacher_first=torch.tensor([0, 1, 2, 5, 7]),
        teacher_count=torch.tensor([1, 1, 3, 1, 1]),
    )
    shared = torch.randperm(11, generator=generator)[:6]
    theirs = torch.randperm(14, generator=generator)[:6]
    words = SharedWords(
        student_ids=shared,
        teacher_ids=theirs,
        student_rest=torch.tensor([w for w in range(11) if w not in shared.tolist()]),
        teacher_rest=torch.tensor([w for w in range(14) if w not in theirs.tolist()]),
        num_student=11,
    )
    labels = ids(9, 11)
    # The first group is of a pair of words, as most are.
    labels[0], teacher.labels[0] = shared[0], theirs[0]
    target = OtherVocabularyTarget(
        teacher=teacher, groups=groups, words=words, coverage=Coverage(), labels=labels
    )
    return Problem(hidden=random(9, 4), head=head, target=target, weights=random(9).abs() / 3 + 0.1)


def same_language(*, num_tokens: int = 6, num_words: int = 7) -> Problem:
    """One tokenizer on both sides: every word is shared, every token a group."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, num_words, (num_tokens,), generator=generator)
    every, places = torch.arange(num_words), torch.arange(num_tokens)
    one = torch.ones_like(places)
    none = every[:0]
    head = Head(weight=torch.randn(num_words, 4, generator=generator, **DOUBLE))
    return Problem(
        hidden=torch.randn(num_tokens, 4, generator=generator, **DOUBLE),
        head=head,
        target=OtherVocabularyTarget(
            teacher=HiddenTarget(
                hidden=torch.randn(num_tokens, 5, generator=generator, **DOUBLE),
                head=Head(weight=torch.randn(num_words, 5, generator=generator, **DOUBLE)),
                labels=labels,
            ),
            groups=Groups(
                student_first=places, student_count=one, teacher_first=places, teacher_count=one
            ),
            words=SharedWords(
                student_ids=every,
                teacher_ids=every,
                student_rest=none,
                teacher_rest=none,
                num_student=num_words,
            ),
            coverage=Coverage(),
            labels=labels,
        ),
        weights=torch.ones(num_tokens, **DOUBLE) / num_tokens,
    )


def probabilities(hidden: Tensor, head: Head, temperature: float) -> list[list[float]]:
    logits = plain_logits(hidden, head) / temperature
    return logits.softmax(dim=-1).tolist()


def slow(given: Problem, kind: str, temperature: float = 1.0, rest: float = 1.0) -> list[float]:
    """The value at each of the student's tokens, by the definition."""
    target, words = given.target, given.target.words
    head = replace(given.head, num_real=words.num_student)
    mine = probabilities(given.hidden, head, temperature)
    theirs = probabilities(target.teacher.hidden, target.teacher.head, temperature)
    my_labels, their_labels = target.labels.tolist(), target.teacher.labels.tolist()
    pairs = list(zip(words.student_ids.tolist(), words.teacher_ids.tolist(), strict=True))
    values = [0.0] * len(given.hidden)
    columns = [column.tolist() for column in vars(target.groups).values()]
    for first, count, their_first, their_count in zip(*columns, strict=True):
        q, p = mine[first], theirs[their_first]
        said = my_labels[first], their_labels[their_first]
        chains = (
            math.prod(mine[first + at][my_labels[first + at]] for at in range(count)),
            math.prod(
                theirs[their_first + at][their_labels[their_first + at]]
                for at in range(their_count)
            ),
        )
        if kind == "uld":
            sides = [
                sorted(
                    [chain, side[own] - chain, *(x for v, x in enumerate(side) if v != own)],
                    reverse=True,
                )
                for side, own, chain in ((q, said[0], chains[0]), (p, said[1], chains[1]))
            ]
            values[first] = distance(*sides)
            continue
        others = [(s, t) for s, t in pairs if s != said[0] and t != said[1]]
        student = [chains[0], *(q[s] for s, _ in others)]
        teacher = [chains[1], *(p[t] for _, t in others)]
        student.append(1 - sum(student))
        teacher.append(1 - sum(teacher))
        kl = sum(t * math.log(t / s) for s, t in zip(student, teacher, strict=True) if t > 1e-15)
        left = [
            sorted((side[w] for w in ids.tolist() if w != own), reverse=True)
            for side, ids, own in (
                (q, words.student_rest, said[0]),
                (p, words.teacher_rest, said[1]),
            )
        ]
        values[first] = kl + rest * distance(*left)
    return values


def distance(one: list[float], other: list[float]) -> float:
    size = max(len(one), len(other))
    one, other = (x + [0.0] * (size - len(x)) for x in (one, other))
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))
