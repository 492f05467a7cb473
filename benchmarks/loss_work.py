"""The worker of `benchmarks.loss`: forward and backward of one implementation, in its own process.

Everything gets the same hidden states and heads, returns the mean over tokens in nats and leaves
gradients of the student's hidden states and head.
"""

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from benchmarks.command import work_by
from benchmarks.measure import Answer, Timing, peak_bytes, reset_peak, resident_bytes, timed
from torch import Tensor

BETA = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLICE_TOKENS, SLICE_ENTRIES = 32, 16384
FLOOR_TILE = 1024


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """Both sides' hidden states and heads."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor

    def sliced(self) -> "Work":
        """A few tokens over part of the vocabulary, small enough for float64."""
        return Work(
            hidden=_leaf(self.hidden[:SLICE_TOKENS]),
            weight=_leaf(self.weight[:SLICE_ENTRIES]),
            teacher_hidden=self.teacher_hidden[:SLICE_TOKENS].clone(),
            teacher_weight=self.teacher_weight[:SLICE_ENTRIES].clone(),
            labels=self.labels[:SLICE_TOKENS] % SLICE_ENTRIES,
        )

    def nearly_equal(self) -> "Work":
        """The same slice with a student that is almost the teacher."""
        near = self.sliced()
        noise = torch.randn(near.weight.shape, generator=torch.Generator().manual_seed(1))
        head = near.teacher_weight.float()
        return Work(
            hidden=_leaf(near.teacher_hidden),
            weight=_leaf((head + 0.02 * head.std() * noise).to(near.weight.dtype)),
            teacher_hidden=near.teacher_hidden,
            teacher_weight=near.teacher_weight,
            labels=near.labels,
        )


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def make_work(asked: Answer) -> Work:
    """Random hidden states, and heads that make logits about as spread as a trained model's."""
    dtype = DTYPES[asked["dtype"]]
    tokens, entries, width = asked["tokens"], asked["entries"], asked["width"]
    g = torch.Generator().manual_seed(0)

    def normal(rows: int, size: float) -> Tensor:
        return (torch.randn(rows, width, generator=g) * size).to(dtype)

    return Work(
        hidden=_leaf(normal(tokens, 1.0)),
        weight=_leaf(normal(entries, 2 / width**0.5)),
        teacher_hidden=normal(tokens, 1.0),
        teacher_weight=normal(entries, 2 / width**0.5),
        labels=torch.randint(0, entries, (tokens,), generator=g),
    )


def ours(work: Work, asked: Answer) -> Tensor:
    from tutelage.core.targets import Head, HiddenTarget  # noqa: PLC0415  only here
    from tutelage.objectives import from_settings  # noqa: PLC0415
    from tutelage.objectives.fused import FusedOptions, fused_loss  # noqa: PLC0415

    tokens = work.hidden.shape[0]
    settings = asked.get("objective") or {"kind": asked["kind"]}
    return fused_loss(
        work.hidden,
        Head(weight=work.weight),
        HiddenTarget(
            hidden=work.teacher_hidden, head=Head(weight=work.teacher_weight), labels=work.labels
        ),
        from_settings(settings),
        token_weights=torch.full((tokens,), 1 / tokens),
        options=FusedOptions(**asked.get("options", {})),
    ).loss


def naive(work: Work, asked: Answer) -> Tensor:
    """Full logits, softmax in fp32, autograd: what most training scripts do."""
    student = (work.hidden @ work.weight.T).float().log_softmax(-1)
    teacher = (work.teacher_hidden @ work.teacher_weight.T).float().log_softmax(-1)
    match asked["kind"]:
        case "forward_kl":
            per_token = (teacher.exp() * (teacher - student)).sum(-1)
        case "reverse_kl":
            per_token = (student.exp() * (student - teacher)).sum(-1)
        case _:
            mixture = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
            per_token = (
                teacher.exp() * (teacher - mixture) + student.exp() * (student - mixture)
            ).sum(-1) / 2
    return per_token.mean()


def trl_gkd(work: Work, asked: Answer) -> Tensor:
    from trl.experimental.gkd import GKDTrainer  # noqa: PLC0415  optional

    return GKDTrainer.generalized_jsd_loss(
        (work.hidden @ work.weight.T)[None],
        (work.teacher_hidden @ work.teacher_weight.T)[None],
        labels=work.labels[None],
        beta=BETA[asked["kind"]],
    )


def trl_chunked(work: Work, asked: Answer) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # noqa: PLC0415  optional

    sides = (work.hidden, work.weight, None, work.teacher_hidden, work.teacher_weight, None)
    divergence, _ = ChunkedDivergenceFunction.apply(*sides, BETA[asked["kind"]])
    return divergence.mean()


def liger(work: Work, asked: Answer) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: PLC0415  optional

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=BETA[asked["kind"]],
        compiled=asked["compiled"],
    )
    sides = (work.hidden, work.weight, work.teacher_hidden, work.teacher_weight)
    return loss(*sides, work.labels)


def four_matmuls(work: Work) -> None:
    """Both logits, both gradients, into reused buffers, and nothing else: the floor."""
    hidden, weight = work.hidden.detach(), work.weight.detach()
    tokens, entries = hidden.shape[0], weight.shape[0]
    tile = min(tokens, FLOOR_TILE)
    student, teacher = (hidden.new_empty(tile, entries) for _ in range(2))
    hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
    for first in range(0, tokens, tile):
        part = hidden[first : first + tile]
        rows = slice(0, part.shape[0])
        torch.mm(part, weight.T, out=student[rows])
        torch.mm(
            work.teacher_hidden[first : first + tile], work.teacher_weight.T, out=teacher[rows]
        )
        torch.mm(student[rows], weight, out=hidden_gradient[first : first + tile])
        torch.mm(student[rows].T, part, out=weight_gradient)


LOSSES: dict[str, Callable[[Work, Answer], Tensor]] = {
    "ours": ours,
    "naive": naive,
    "trl_gkd": trl_gkd,
    "trl_chunked": trl_chunked,
    "liger": liger,
}


def once(work: Work, asked: Answer) -> tuple[Timing, float]:
    """One forward and backward; gradients are made anew each time."""
    work.hidden.grad = work.weight.grad = None
    with timed() as timing:
        if asked["implementation"] == "floor":
            four_matmuls(work)
            value = float("nan")
        else:
            loss = LOSSES[asked["implementation"]](work, asked)
            loss.backward()
            value = float(loss.detach())
    return timing, value


def errors(work: Work, asked: Answer) -> dict[str, float]:
    """Relative error of loss and gradients against float64 on the same inputs."""
    if asked["implementation"] == "floor":
        return {}
    found: dict[str, float] = {}
    for name, part in (("", work.sliced()), ("near_", work.nearly_equal())):
        _, value = once(part, asked)
        exact = Work(
            hidden=_leaf(part.hidden.double()),
            weight=_leaf(part.weight.double()),
            teacher_hidden=part.teacher_hidden.double(),
            teacher_weight=part.teacher_weight.double(),
            labels=part.labels,
        )
        # The plain definition serves every objective as its own reference.
        _, true = once(exact, {**asked, "implementation": "ours", "options": {}})
        found[f"{name}loss"] = value
        found[f"{name}loss_error"] = abs(value - true) / abs(true)
        for side in ("hidden", "weight"):
            got, want = getattr(part, side).grad.double(), getattr(exact, side).grad
            found[f"{name}{side}_error"] = float((got - want).norm() / want.norm())
    return found


def answer(asked: Answer) -> Answer:
    """Load, forget the peak, run once apart (compilation), then the timed repeats."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked["threads"])
    if asked["implementation"] != "floor":
        _import_peers(asked)
    work = make_work(asked)
    held = reset_peak()
    first, _ = once(work, asked)
    timings = [once(work, asked)[0] for _ in range(asked["repeats"])]
    memory = peak_bytes() - held
    walls = [timing.wall_seconds for timing in timings]
    found: dict[str, Any] = {
        "first_seconds": first.wall_seconds,
        "wall_seconds": statistics.median(walls),
        "cpu_seconds": statistics.median(timing.cpu_seconds for timing in timings),
        "memory_bytes": memory,
        "resident_bytes": resident_bytes(),
    }
    found["cpu_per_wall"] = found["cpu_seconds"] / found["wall_seconds"]
    return found | errors(work, asked)


def _import_peers(asked: Answer) -> None:
    """Imports take memory that belongs to nobody's loss: do them before the peak is reset."""
    tiny = {**asked, "tokens": 4, "entries": 64, "width": 16, "compiled": False}
    once(make_work(tiny), tiny)


if __name__ == "__main__":
    work_by(answer)
