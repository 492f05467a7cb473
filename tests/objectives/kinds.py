"""The settings every law is tried on: each kind at its defaults and in its variants."""

from typing import Any

import pytest

Case = dict[str, Any]

WEIGHTS = ("student", "teacher", "uniform")

DIVERGENCES: list[Case] = [
    {"kind": "forward_kl"},
    {"kind": "forward_kl", "temperature": 1.7},
    {"kind": "forward_kl", "temperature": 0.5, "scale_by_t2": True},
    {"kind": "reverse_kl"},
    {"kind": "reverse_kl", "temperature": 2.0, "scale_by_t2": True},
    {"kind": "jeffreys"},
    {"kind": "symmetric_kl"},
    {"kind": "symmetric_kl", "reverse_weight": 0.9},
    {"kind": "jsd"},
    {"kind": "jsd", "teacher_share": 0.1},
    {"kind": "jsd", "teacher_share": 0.9, "temperature": 1.5},
    {"kind": "jsd", "teacher_share": 0.2, "scaled": True},
    {"kind": "skew_forward_kl"},
    {"kind": "skew_forward_kl", "teacher_share": 0.6, "temperature": 1.3},
    {"kind": "skew_reverse_kl"},
    {"kind": "skew_reverse_kl", "student_share": 0.4, "detach_mixture": True},
    {"kind": "total_variation"},
    {"kind": "alpha_beta"},
    {"kind": "alpha_beta", "alpha": 0.5, "beta": 0.5},
    {"kind": "alpha_beta", "alpha": 1.0, "beta": 1.0, "temperature": 2.0},
    {"kind": "adaptive_kl"},
    {"kind": "adaptive_kl", "head_mass": 0.8},
    {"kind": "amid"},
    {"kind": "amid", "curve": -1.0, "teacher_share": 0.1},
    {"kind": "amid", "curve": 1.0, "between": "student_mixture"},
    {"kind": "amid", "between": "mixture_teacher", "teacher_share": 0.3},
    {"kind": "amid", "between": "mixture_student", "measure": "alpha_beta"},
    {"kind": "todi"},
    {"kind": "todi", "temperature": 0.8},
]

# Clips bite at different places, so thresholds differ: some entries and positions are above.
CLIPPED: list[Case] = [
    {"kind": "forward_kl", "clip": {"kind": "pointwise", "threshold": 0.05}},
    {"kind": "forward_kl", "clip": {"kind": "pointwise", "threshold": 0.3}, "temperature": 1.7},
    {"kind": "forward_kl", "clip": {"kind": "token_sum", "threshold": 1.0}},
    {
        "kind": "forward_kl",
        "clip": {"kind": "token_weight", "threshold": 0.8},
        "temperature": 1.3,
        "scale_by_t2": True,
    },
    {"kind": "reverse_kl", "clip": {"kind": "pointwise", "threshold": 0.05}},
    {"kind": "reverse_kl", "clip": {"kind": "pointwise", "threshold": 0.2}, "temperature": 0.8},
    {"kind": "reverse_kl", "clip": {"kind": "token_sum", "threshold": 1.0}},
    {"kind": "reverse_kl", "clip": {"kind": "token_weight", "threshold": 0.8}},
    {"kind": "jsd", "clip": {"kind": "pointwise", "threshold": 0.02}},
    {
        "kind": "jsd",
        "teacher_share": 0.2,
        "scaled": True,
        "clip": {"kind": "pointwise", "threshold": 0.1},
    },
    {"kind": "jsd", "clip": {"kind": "token_sum", "threshold": 0.2}},
    {"kind": "jsd", "teacher_share": 0.8, "clip": {"kind": "token_weight", "threshold": 0.1}},
]

SUPPORTED: list[Case] = [
    {"kind": "forward_kl", "support": {"num_entries": 2}},
    {"kind": "forward_kl", "support": {"num_entries": 2, "rest": "renormalised"}},
    {"kind": "reverse_kl", "support": {"num_entries": 2, "chosen_by": "student"}},
    {"kind": "reverse_kl", "support": {"num_entries": 1, "chosen_by": "union"}, "temperature": 1.4},
    {"kind": "jsd", "support": {"num_entries": 2, "chosen_by": "union"}},
    {
        "kind": "jsd",
        "support": {"num_entries": 2, "chosen_by": "union", "rest": "renormalised"},
        "clip": {"kind": "pointwise", "threshold": 0.02},
    },
    {
        "kind": "forward_kl",
        "support": {"num_entries": 3},
        "clip": {"kind": "token_weight", "threshold": 0.3},
    },
]

CONCRETE_SCORES: list[Case] = [
    {"kind": "concrete_score"},
    *(
        {"kind": "concrete_score", "weights": [first, second]}
        for first in WEIGHTS
        for second in WEIGHTS
    ),
    {"kind": "concrete_score", "mixture": 0.15},
    {"kind": "concrete_score", "mixture": 0.7, "weight_temperature": 2.0},
    {"kind": "concrete_score", "weights": ["teacher", "student"], "weight_temperature": 1.5},
]

DIRECT_LOGITS: list[Case] = [
    {"kind": "direct_logit", "weight": weight, "normalisation": how}
    for weight, how in [
        ("uniform", "none"),
        ("teacher", "none"),
        ("student", "none"),
        ("uniform", "mean"),
        ("student", "std"),
        ("teacher", "min"),
        ("uniform", "max"),
        ("uniform", "range"),
    ]
]

SUMS: list[Case] = [
    {
        "kind": "weighted_sum",
        "parts": [
            {"weight": 0.5, "objective": {"kind": "reverse_kl", "temperature": 2.0}},
            {"weight": 2.0, "objective": {"kind": "jsd"}},
        ],
    }
]

# With one tokenizer on both sides; with two, see cross_vocabulary/.
ACROSS: list[Case] = [
    {"kind": "aligned_kl"},
    {"kind": "aligned_kl", "divergence": {"kind": "jsd", "temperature": 1.6}},
    {"kind": "uld"},
    {"kind": "uld", "temperature": 1.4},
]

# Zero, value and gradient, where student and teacher agree.
ZERO_AT_EQUALITY = [
    *DIVERGENCES,
    *CLIPPED,
    *SUPPORTED,
    *CONCRETE_SCORES,
    *DIRECT_LOGITS,
    *SUMS,
    *ACROSS,
]

# Hard labels and the teacher's distribution: right, but not zero at equality.
CROSS_ENTROPIES: list[Case] = [
    {"kind": "cross_entropy"},
    {"kind": "cross_entropy", "labels": "tokens"},
    {"kind": "cross_entropy", "labels": "teacher"},
    {
        "kind": "weighted_sum",
        "parts": [
            {"weight": 0.3, "objective": {"kind": "cross_entropy"}},
            {"weight": 0.7, "objective": {"kind": "forward_kl"}},
        ],
    },
]

# Zero at equality too, but they need the completion's own ids.
SAMPLED: list[Case] = [
    {"kind": "sampled_token"},
    {"kind": "sampled_token", "temperature": 1.6},
]

POLICIES: list[Case] = [
    {"kind": "policy_gradient"},
    {"kind": "policy_gradient", "temperature": 1.6},
]

EVERY = [*ZERO_AT_EQUALITY, *CROSS_ENTROPIES, *SAMPLED, *POLICIES]


def name_of(case: Case) -> str:
    if case["kind"] == "weighted_sum":
        return "+".join(name_of(part["objective"]) for part in case["parts"])
    rest = "-".join(
        "_".join(value) if isinstance(value, list) else f"{key}={_short(value)}"
        for key, value in case.items()
        if key != "kind"
    )
    return f"{case['kind']}-{rest}" if rest else case["kind"]


def _short(value: object) -> object:
    return "/".join(str(part) for part in value.values()) if isinstance(value, dict) else value


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """Parametrise a test by settings, under readable names."""
    return pytest.mark.parametrize("case", cases, ids=name_of)


every_kind = each(EVERY)
every_divergence = each(ZERO_AT_EQUALITY)
