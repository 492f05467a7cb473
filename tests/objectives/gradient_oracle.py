"""Gradients with respect to the student's scores, from formulas, one Python float at a time.

Every divergence of two distributions has the gradient q * (h - E_q h) / T, with h its derivative
with respect to the student's probabilities q; the rest have formulas of their own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.objectives import oracle

Row = Sequence[float]
Settings = Mapping[str, Any]


class Entry(NamedTuple):
    """One vocabulary entry: student, teacher, and their logs."""

    q: float
    p: float
    lq: float
    lp: float


def between(entry: Entry, forward_share: float) -> float:
    """Forward KL's slope and reverse KL's, mixed."""
    return -forward_share * entry.p / entry.q + (1 - forward_share) * (entry.lq - entry.lp)


def jsd(entry: Entry, settings: Settings) -> float:
    share = settings.get("teacher_share", 0.5)
    scale = share * (1 - share) if settings.get("scaled") else 1.0
    mixed = share * entry.p + (1 - share) * entry.q
    return (1 - share) * (entry.lq - math.log(mixed)) / scale


def skew_forward(entry: Entry, settings: Settings) -> float:
    share = settings.get("teacher_share", 0.1)
    return -(1 - share) * entry.p / (share * entry.p + (1 - share) * entry.q)


def skew_reverse(entry: Entry, settings: Settings) -> float:
    share = settings.get("student_share", 0.1)
    mixed = share * entry.q + (1 - share) * entry.p
    inside = 0.0 if settings.get("detach_mixture") else share * entry.q / mixed
    return entry.lq - math.log(mixed) - inside


def alpha_beta(entry: Entry, settings: Settings) -> float:
    a, b = settings.get("alpha", 0.2), settings.get("beta", 0.7)
    return (entry.q ** (a + b - 1) - entry.p**a * entry.q ** (b - 1)) / a


def todi(entry: Entry) -> float:
    lift = entry.p / (entry.p + entry.q)
    return -lift * entry.p / entry.q + (1 - lift) * (entry.lq - entry.lp + 1)


def slopes(lq: Row, lp: Row, settings: Settings) -> list[float]:
    """h for each vocabulary entry, up to a constant."""
    head = oracle.head_share(lq, lp, settings.get("head_mass", 0.5))
    reverse = settings.get("reverse_weight", 0.5)
    slope = {
        "forward_kl": lambda e: between(e, 1),
        "reverse_kl": lambda e: between(e, 0),
        "jeffreys": lambda e: 2 * between(e, 0.5),
        "symmetric_kl": lambda e: between(e, 1 - reverse),
        "jsd": lambda e: jsd(e, settings),
        "skew_forward_kl": lambda e: skew_forward(e, settings),
        "skew_reverse_kl": lambda e: skew_reverse(e, settings),
        "total_variation": lambda e: math.copysign(0.5, e.q - e.p),
        "alpha_beta": lambda e: alpha_beta(e, settings),
        "adaptive_kl": lambda e: between(e, head),
        "todi": todi,
    }[settings["kind"]]
    return [slope(Entry(math.exp(b), math.exp(a), b, a)) for a, b in zip(lp, lq, strict=True)]


def of_divergence(settings: Settings, student: Row, teacher: Row) -> list[float]:
    t = settings.get("temperature", 1.0)
    lq, lp = oracle.log_softmax(student, t), oracle.log_softmax(teacher, t)
    q, h = oracle.exp(lq), slopes(lq, lp, settings)
    mean = sum(a * b for a, b in zip(q, h, strict=True))
    scale = t if settings.get("scale_by_t2") else 1 / t
    return [scale * a * (b - mean) for a, b in zip(q, h, strict=True)]


def of_concrete_score(student: Row, teacher: Row, w1: Row, w2: Row) -> list[float]:
    """The halved gradient of the paper's double sum, weights held still, over all pairs."""
    d = [a - b for a, b in zip(student, teacher, strict=True)]
    everywhere = range(len(d))
    return [
        sum((w1[k] * w2[x] + w1[x] * w2[k]) * (d[k] - d[x]) for x in everywhere) / 2
        for k in everywhere
    ]
