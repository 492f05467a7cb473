"""Two sides of a few rows as every kernel needs them, with as few passes as possible.

Rows are full precision, contiguous, small enough to stay in cache, and hold finite scores only;
kernels destroy them. Exponentials come from softmax: it is vectorised everywhere and has no slow
range, while `torch.exp` takes tens of times longer on very negative numbers where MKL does it.
"""

import threading
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

_KEPT = threading.local()


def scratch_like(rows: Float[Tensor, "*at V"], name: str) -> Float[Tensor, "*at V"]:
    """Uninitialised rows. On CPU the same memory each time a thread asks for the name.

    Fresh memory costs more than the arithmetic on it: the system hands it out page by page.
    """
    if rows.device.type != "cpu":
        return torch.empty_like(rows)
    key = f"{name} {rows.dtype}"
    kept: Tensor | None = getattr(_KEPT, key, None)
    if kept is None or kept.numel() < rows.numel():
        kept = torch.empty(rows.numel(), dtype=rows.dtype)
        setattr(_KEPT, key, kept)
    return kept[: rows.numel()].view(rows.shape)


def forget_scratch() -> None:
    """Give this thread's scratch memory back."""
    _KEPT.__dict__.clear()


def all_finite(*sides: Float[Tensor, "R V"]) -> bool:
    """Whether no score is infinite or NaN. A sum says so in one pass, unless it overflows."""
    return all(bool(side.sum().isfinite()) for side in sides)


def dot(a: Float[Tensor, "R V"], b: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    """sum_v a(v) * b(v), row by row."""
    return torch.linalg.vecdot(a, b)


def softmax_into(out: Float[Tensor, "R V"], scores: Float[Tensor, "R V"]) -> None:
    """Softmax of each row; `out` may be `scores`."""
    torch.ops.aten._softmax.out(scores, -1, False, out=out)  # noqa: SLF001, FBT003  in place


def log_softmax_(scores: Float[Tensor, "R V"]) -> None:
    """Log-softmax of each row in place."""
    torch.ops.aten._log_softmax.out(scores, -1, False, out=scores)  # noqa: SLF001, FBT003


def through_softmax(
    out: Float[Tensor, "R V"], slope: Float[Tensor, "R V"], q: Float[Tensor, "R V"]
) -> None:
    """From d value / d q to d value / d scores: q * (slope - sum_v q * slope).

    `out` may be `slope` or `q`.
    """
    torch.ops.aten._softmax_backward_data.out(  # noqa: SLF001  the public way allocates
        slope, q, -1, slope.dtype, grad_input=out
    )


def centre_by(
    slope: Float[Tensor, "R V"], q: Float[Tensor, "R V"], out: Float[Tensor, "R V"]
) -> None:
    """From d value / d log q to d value / d scores: slope - q * sum_v slope.

    `out` may be `slope` or `q`.
    """
    torch.addcmul(slope, q, slope.sum(dim=-1, keepdim=True), value=-1, out=out)


def top_of(rows: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    """The largest entry of each row, in fp64."""
    return rows.amax(dim=-1).double()


@final
@dataclass(frozen=True)
class Compared:
    """Student q, teacher p and their log-ratio."""

    q: Float[Tensor, "R V"]
    """Lies where the student's scores were."""
    p: Float[Tensor, "R V"]
    gap: Float[Tensor, "R V"]
    """log q - log p; lies where the teacher's scores were."""


def compare(student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"]) -> Compared:
    """Both distributions and their log-ratio, without taking a logarithm of any probability.

    The log-ratio is the difference of the scores less that of their log-sum-exps, which the
    likeliest entry of each side gives away: log-sum-exp = score - log(probability) there.
    """
    p = scratch_like(teacher, "p")
    softmax_into(p, teacher)
    teacher_lse = top_of(teacher) - top_of(p).log()
    student_top = top_of(student)
    torch.sub(student, teacher, out=teacher)
    softmax_into(student, student)
    shift = student_top - top_of(student).log() - teacher_lse
    teacher.sub_(shift.to(teacher.dtype)[:, None])
    return Compared(q=student, p=p, gap=teacher)
