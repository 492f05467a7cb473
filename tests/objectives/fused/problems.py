"""Small problems for the fused path, and the plain twin it is held against."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tutelage.core.targets import Head, HiddenTarget, LogitsTarget
from tutelage.objectives import from_settings
from tutelage.objectives.fused import FusedOptions, fused_loss
from tutelage.objectives.objective import Objective

KINDS: list[Mapping[str, Any]] = [
    {"kind": "forward_kl"},
    {"kind": "forward_kl", "temperature": 1.7, "scale_by_t2": True},
    {"kind": "reverse_kl"},
    {"kind": "jeffreys"},
    {"kind": "symmetric_kl", "reverse_weight": 0.9},
    {"kind": "jsd"},
    {"kind": "jsd", "teacher_share": 0.1, "temperature": 0.9},
    {"kind": "skew_forward_kl"},
    {"kind": "skew_reverse_kl"},
    {"kind": "skew_reverse_kl", "detach_mixture": True},
    {"kind": "total_variation"},
    {"kind": "alpha_beta"},
    {"kind": "adaptive_kl"},
    {"kind": "amid"},
    {"kind": "amid", "between": "student_mixture", "curve": -1.0},
    {"kind": "amid", "measure": "alpha_beta"},
    {"kind": "todi"},
    {"kind": "direct_logit"},
    {"kind": "direct_logit", "weight": "teacher", "normalisation": "mean"},
    {"kind": "direct_logit", "normalisation": "std"},
    {"kind": "concrete_score"},
    {"kind": "concrete_score", "weights": ("teacher", "student")},
    {"kind": "concrete_score", "weights": ("uniform", "student"), "weight_temperature": 1.5},
    {"kind": "concrete_score", "mixture": 0.15},
    {"kind": "forward_kl", "clip": {"kind": "pointwise", "threshold": 0.05}},
    {"kind": "reverse_kl", "clip": {"kind": "pointwise", "threshold": 0.1}, "temperature": 1.3},
    {
        "kind": "jsd",
        "teacher_share": 0.3,
        "scaled": True,
        "clip": {"kind": "pointwise", "threshold": 0.08},
    },
    {"kind": "reverse_kl", "clip": {"kind": "token_sum", "threshold": 2.0}},
    {"kind": "forward_kl", "clip": {"kind": "token_weight", "threshold": 1.0}},
    {"kind": "forward_kl", "support": {"num_entries": 9}},
    {"kind": "jsd", "support": {"num_entries": 5, "chosen_by": "union"}, "temperature": 1.2},
    # A support is a choice, and rounding to bfloat16 may turn it where two scores tie at its edge:
    # so it does with 7 entries in these problems.
    {"kind": "reverse_kl", "support": {"num_entries": 4, "rest": "renormalised"}},
    {"kind": "sampled_token"},
    {"kind": "sampled_token", "temperature": 0.8},
    {"kind": "policy_gradient", "temperature": 0.8},
    {"kind": "cross_entropy"},
    {"kind": "cross_entropy", "labels": "teacher"},
    {"kind": "aligned_kl", "divergence": {"kind": "jsd"}},
    {"kind": "uld"},
    {
        "kind": "weighted_sum",
        "parts": [
            {"weight": 0.3, "objective": {"kind": "jsd"}},
            {"weight": 2.0, "objective": {"kind": "cross_entropy"}},
        ],
    },
]


def name_of(settings: Mapping[str, Any]) -> str:
    rest = "-".join(
        f"{k}={'/'.join(str(part) for part in v.values()) if isinstance(v, dict) else v}"
        for k, v in settings.items()
        if k not in ("kind", "parts")
    )
    return f"{settings['kind']}-{rest}" if rest else settings["kind"]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a pair of heads may have."""

    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    tied: bool = False
    frozen: bool = False
    student_rows: int = 0
    """Rows more than the teacher's vocabulary has; negative for fewer."""
    num_real: int | None = None
    teacher_width: int = 12
    teacher_scale: float = 1.0
    teacher_softcap: float | None = None
    """None takes the student's."""
    teacher_num_real: int | None = None
    given_logits: bool = False
    uneven_weights: bool = True


FEATURES: dict[str, Features] = {
    "plain": Features(uneven_weights=False),
    "bias": Features(bias=True),
    "scale": Features(scale=0.3),
    "softcap": Features(softcap=3.0, bias=True, scale=1.5),
    "tied": Features(tied=True),
    "frozen": Features(frozen=True),
    "wider student": Features(student_rows=5),
    "narrower student": Features(student_rows=-4, teacher_width=31),
    "num_real": Features(num_real=40, bias=True),
    "given logits": Features(given_logits=True, num_real=48, teacher_num_real=44),
    "unlike teacher": Features(
        bias=True,
        scale=0.6,
        softcap=6.0,
        num_real=46,
        teacher_scale=1.4,
        teacher_softcap=2.5,
        teacher_num_real=40,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    hidden: Tensor
    head: Head
    target: HiddenTarget | LogitsTarget
    weights: Tensor
    tied: bool

    def leaves(self) -> list[Tensor]:
        candidates = [self.hidden, self.head.weight, self.head.bias]
        return [leaf for leaf in candidates if leaf is not None and leaf.requires_grad]


def make_case(
    features: Features,
    *,
    dtype: torch.dtype = torch.float32,
    num_tokens: int = 13,
    num_entries: int = 51,
    seed: int = 0,
) -> Case:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g) * size).to(dtype)

    width = 16
    student_entries = num_entries + features.student_rows
    hidden = normal(num_tokens, width).requires_grad_(not features.tied)
    weight = normal(student_entries, width, size=0.5).requires_grad_(not features.frozen)
    bias = normal(student_entries).requires_grad_() if features.bias else None
    teacher_hidden = normal(num_tokens, features.teacher_width)
    teacher_head = Head(
        weight=normal(num_entries, features.teacher_width, size=0.6),
        bias=normal(num_entries) if features.bias else None,
        scale=features.teacher_scale,
        softcap=features.teacher_softcap or features.softcap,
        num_real=features.teacher_num_real,
    )
    reals = (features.num_real or num_entries, features.teacher_num_real or num_entries)
    shared = min(student_entries, num_entries, *reals)
    labels = torch.randint(0, shared, (num_tokens,), generator=g)
    weights = torch.rand(num_tokens, generator=g) if features.uneven_weights else None
    target: HiddenTarget | LogitsTarget = HiddenTarget(
        hidden=teacher_hidden, head=teacher_head, labels=labels
    )
    if features.given_logits:
        logits = teacher_hidden @ teacher_head.weight.T
        target = LogitsTarget(logits=logits, labels=labels, num_real=features.teacher_num_real)
    return Case(
        hidden=hidden,
        head=Head(
            weight=weight,
            bias=bias,
            scale=features.scale,
            softcap=features.softcap,
            num_real=features.num_real,
        ),
        target=target,
        weights=torch.full((num_tokens,), 1 / num_tokens) if weights is None else weights,
        tied=features.tied,
    )


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    """The same numbers in another dtype, as fresh leaves."""

    def cast(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().to(dtype).requires_grad_(x.requires_grad)

    head = replace(case.head, weight=cast(case.head.weight), bias=cast(case.head.bias))
    t = case.target
    if isinstance(t, HiddenTarget):
        teacher = replace(t.head, weight=cast(t.head.weight), bias=cast(t.head.bias))
        target: HiddenTarget | LogitsTarget = replace(t, hidden=cast(t.hidden), head=teacher)
    else:
        target = replace(t, logits=cast(t.logits))
    return replace(case, hidden=cast(case.hidden), head=head, target=target)


def scores_of(hidden: Tensor, head: Head) -> Tensor:
    """The head as its docstring defines it."""
    scores = hidden @ head.weight.T
    if head.bias is not None:
        scores = scores + head.bias
    scores = scores * head.scale
    if head.softcap is not None:
        scores = head.softcap * torch.tanh(scores / head.softcap)
    return scores


def hidden_of(case: Case) -> Tensor:
    """With a tied head, rows of the head's own weight: an embedding that no layer changed."""
    return case.head.weight[: case.hidden.shape[0]] if case.tied else case.hidden


def plain(case: Case, objective: Objective) -> tuple[Tensor, list[Tensor]]:
    """Full logits, the definition, autograd: values of each token, then the leaves' gradients."""
    hidden = hidden_of(case)
    student = scores_of(hidden, case.head)
    t = case.target
    teacher = scores_of(t.hidden, t.head) if isinstance(t, HiddenTarget) else t.logits
    reals = [case.head.num_real, student.shape[-1], teacher.shape[-1]]
    reals.append(t.head.num_real if isinstance(t, HiddenTarget) else t.num_real)
    shared = min(real for real in reals if real is not None)
    values = objective.per_token(
        student, LogitsTarget(logits=teacher.detach(), labels=t.labels, num_real=shared)
    )
    loss = (values * case.weights.to(values.dtype)).sum()
    return values.detach(), list(torch.autograd.grad(loss, case.leaves()))


def fused(case: Case, objective: Objective, **options: Any) -> tuple[Tensor, list[Tensor]]:
    hidden = hidden_of(case)
    out = fused_loss(
        hidden,
        case.head,
        case.target,
        objective,
        token_weights=case.weights,
        options=FusedOptions(**options),
    )
    return out.per_token, list(torch.autograd.grad(out.loss, case.leaves()))


def exact(case: Case, objective: Objective) -> tuple[Tensor, list[Tensor]]:
    return plain(in_dtype(case, torch.float64), objective)


def error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference, relative to that of what is wanted."""
    size = want.double().norm()
    return float((got.double() - want.double()).norm() / (size if size > 0 else 1.0))


def objective_of(settings: Mapping[str, Any]) -> Objective:
    return from_settings(settings)
