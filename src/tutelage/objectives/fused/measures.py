"""How two models compare on the same tokens, without their full logits and without gradients."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.targets import Head, HiddenTarget, LogitsTarget, SeveralTarget
from tutelage.objectives.fused.driver import Block, Problem, walking
from tutelage.objectives.fused.options import FusedOptions, Measures

_DEFAULTS = FusedOptions()


@torch.no_grad()
def fused_measures(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    target: HiddenTarget | LogitsTarget | SeveralTarget | None,
    *,
    labels: Int[Tensor, " N"] | None = None,
    options: FusedOptions = _DEFAULTS,
) -> Measures:
    """Both divergences, entropies and favourites of N tokens, for evaluation and reports.

    Everything is over the vocabulary entries that both sides share; without a target, over the
    student's own.

    Args:
        labels: the completion's own ids, where no target brings them.
    """
    problem = Problem(
        student_hidden=student_hidden,
        student_head=student_head,
        target=target,
        options=options,
        given_labels=labels,
    )
    with walking(problem) as walk:
        found = _Columns(walk.num_tokens, like=walk.student_rows)
        for first, last in walk.tiles():
            for block in walk.blocks(first, last):
                found.fill(block)
    return found.measures(teacher=target is not None, labels=problem.labels is not None)


class _Columns:
    """One [N] column for each measure, filled block by block."""

    def __init__(self, num_tokens: int, *, like: Tensor) -> None:
        self._like = like
        self._num_tokens = num_tokens
        self._columns: dict[str, Tensor] = {}

    def fill(self, block: Block) -> None:
        student_logp, student_p = _distribution(block.student)
        self._put_side("student", student_logp, student_p, block)
        if block.teacher is None:
            return
        teacher_logp, teacher_p = _distribution(block.teacher)
        self._put_side("teacher", teacher_logp, teacher_p, block)
        self._put("forward_kl", block.at, _expected(teacher_p, teacher_logp - student_logp))
        self._put("reverse_kl", block.at, _expected(student_p, student_logp - teacher_logp))

    def measures(self, *, teacher: bool, labels: bool) -> Measures:
        names = ["student_entropy"] + ["student_label_logp"] * labels
        if teacher:
            names += ["forward_kl", "reverse_kl", "teacher_entropy"]
            names += ["teacher_label_logp"] * labels
        for name in names:
            self._columns.setdefault(name, self._like.new_empty(0))
        for name in ["student_top"] + ["teacher_top"] * teacher:
            self._columns.setdefault(name, self._like.new_empty(0, dtype=torch.int64))
        columns = self._columns
        agree = columns["student_top"] == columns["teacher_top"] if teacher else None
        return Measures(**columns, agree=agree)

    def _put_side(self, side: str, logp: Tensor, p: Tensor, block: Block) -> None:
        self._put(f"{side}_entropy", block.at, -_expected(p, logp))
        self._put(f"{side}_top", block.at, logp.argmax(dim=-1))
        if block.labels is not None:
            self._put(f"{side}_label_logp", block.at, _at(logp, block.labels))

    def _put(self, name: str, at: slice, values: Tensor) -> None:
        if name not in self._columns:
            self._columns[name] = values.new_empty(self._num_tokens)
        self._columns[name][at] = values


def _distribution(scores: Float[Tensor, "R V"]) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(scores, dim=-1)
    return logp, torch.softmax(scores, dim=-1)


def _expected(p: Float[Tensor, "R V"], values: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    return (p * torch.where(p > 0, values, 0.0)).sum(dim=-1)


def _at(logp: Float[Tensor, "R V"], labels: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    # A label behind the shared entries has no probability there.
    inside = labels < logp.shape[1]
    found = logp.gather(1, torch.where(inside, labels, 0)[:, None])[:, 0]
    return torch.where(inside, found, -torch.inf)


@torch.no_grad()
def excluded_mass_of_hidden(
    hidden: Float[Tensor, "N D"],
    head: Head,
    *,
    num_shared: int,
    options: FusedOptions = _DEFAULTS,
) -> Float[Tensor, " N"]:
    """The share of probability that a head gives to entries behind the first `num_shared`."""
    whole = Head(weight=head.weight, bias=head.bias, scale=head.scale, softcap=head.softcap)
    problem = Problem(student_hidden=hidden, student_head=whole, target=None, options=options)
    with walking(problem) as walk:
        out = hidden.new_empty(walk.num_tokens, dtype=problem.row_dtype)
        for first, last in walk.tiles():
            for block in walk.blocks(first, last):
                out[block.at] = block.student.softmax(dim=-1)[:, num_shared:].sum(dim=-1)
    return out
