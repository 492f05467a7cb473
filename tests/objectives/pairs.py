"""Students and teachers to try: hypothesis strategies, and the golden pair."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from tutelage.core.targets import LogitsTarget
from tutelage.objectives import Objective

GOLDEN_STUDENT = [0.0, 1.0, 2.0, -1.0]
GOLDEN_TEACHER = [2.0, 0.0, -1.0, 1.0]

Pair = tuple[Tensor, Tensor]


def row(scores: list[float]) -> Tensor:
    return torch.tensor([scores], dtype=torch.float64)


def golden_pair() -> Pair:
    return row(GOLDEN_STUDENT), row(GOLDEN_TEACHER)


def random_pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, dtype=torch.float64, generator=generator) * 2
    return student.to(dtype), teacher.to(dtype)


def _scores(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-6, 6, width=32), min_size=size, max_size=size)


@st.composite
def student_and_teacher(draw: st.DrawFn) -> Pair:
    """Two [3, V] tensors of fp64 scores, V from 2 to 6."""
    size = draw(st.integers(2, 6))
    rows = [draw(_scores(size)) for _ in range(6)]
    scores = torch.tensor(rows, dtype=torch.float64).view(2, 3, size)
    return scores[0], scores[1]


@st.composite
def with_ruled_out_entries(draw: st.DrawFn) -> Pair:
    """The same with -inf here and there on either side; some entry is left to both."""
    student, teacher = draw(student_and_teacher())
    for scores in (student, teacher):
        for i in range(scores.shape[0]):
            out = draw(st.sets(st.integers(1, scores.shape[1] - 1), max_size=2))
            scores[i, list(out)] = -math.inf
    return student, teacher


def value_and_gradient(
    objective: Objective, student: Tensor, teacher: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Nats per position, and the gradient of their sum in the student's scores."""
    scores = student.detach().clone().requires_grad_()
    values = objective.per_token(scores, LogitsTarget(logits=teacher, labels=labels))
    (gradient,) = torch.autograd.grad(values.sum(), scores)
    return values.detach(), gradient
