"""Every objective once more, from its definition, one Python float at a time.

Nothing of torch or of the package is used: a row of scores is a list, and a log-probability may
be -inf. Values only; the gradients are in `gradient_oracle.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Sequence[float]


def log_softmax(scores: Row, temperature: float = 1.0) -> list[float]:
    top = max(scores)
    total = math.log(sum(math.exp((z - top) / temperature) for z in scores))
    return [(z - top) / temperature - total for z in scores]


def exp(logp: Row) -> list[float]:
    return [math.exp(x) for x in logp]


def kl(p: Row, q: Row) -> float:
    """KL of two rows of log-probabilities, the first of which may be of any mass."""
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if math.exp(a) > 0)


def log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def mix(p: Row, q: Row, share: float) -> list[float]:
    """Log of `share` of p and the rest of q."""
    return [log(share * math.exp(a) + (1 - share) * math.exp(b)) for a, b in zip(p, q, strict=True)]


def jsd(q: Row, p: Row, share: float) -> float:
    m = mix(p, q, share)
    return share * kl(p, m) + (1 - share) * kl(q, m)


def total_variation(q: Row, p: Row) -> float:
    return sum(abs(a - b) for a, b in zip(exp(p), exp(q), strict=True)) / 2


def alpha_beta(q: Row, p: Row, a: float, b: float) -> float:
    total = 0.0
    for pv, qv in zip(exp(p), exp(q), strict=True):
        total += pv**a * qv**b - a / (a + b) * pv ** (a + b) - b / (a + b) * qv ** (a + b)
    return -total / (a * b)


def head_share(q: Row, p: Row, head_mass: float) -> float:
    """The weight of forward KL in the adaptive KL."""
    order = sorted(range(len(p)), key=lambda v: -p[v])
    gap = [abs(a - b) for a, b in zip(exp(p), exp(q), strict=True)]
    mass, head = 0.0, 0.0
    for place, v in enumerate(order):
        mass += math.exp(p[v])
        if place == 0 or mass <= head_mass:
            head += gap[v]
    return head / sum(gap) if sum(gap) > 0 else 0.5


def adaptive_kl(q: Row, p: Row, head_mass: float) -> float:
    c = head_share(q, p, head_mass)
    return (c * kl(p, q) if c else 0.0) + ((1 - c) * kl(q, p) if c < 1 else 0.0)


def lift(lp: float, lq: float) -> float:
    """How much of a token's ToDi term is forward KL: p / (p + q), safe for tiny masses."""
    return 1 / (1 + math.exp(min(lq - lp, 700.0))) if lq > -math.inf else 1.0


def todi(q: Row, p: Row) -> float:
    total = 0.0
    for lp, lq in zip(p, q, strict=True):
        if math.exp(lp) > 0:
            total += lift(lp, lq) * math.exp(lp) * (lp - lq)
        if math.exp(lq) > 0:
            total += (1 - lift(lp, lq)) * math.exp(lq) * (lq - lp) if lp > -math.inf else math.inf
    return total


def amid(q: Row, p: Row, settings: Mapping[str, Any]) -> float:
    share, curve = settings.get("teacher_share", 0.5), settings.get("curve", 0.5)
    power = (1 - curve) / 2
    pairs = list(zip(exp(p), exp(q), strict=True))
    if power == 0:
        raw = [a**share * b ** (1 - share) for a, b in pairs]
    else:
        raw = [(share * a**power + (1 - share) * b**power) ** (1 / power) for a, b in pairs]
    sides = {"student": q, "teacher": p, "mixture": [log(x / sum(raw)) for x in raw]}
    first, second = (sides[n] for n in settings.get("between", "teacher_mixture").split("_"))
    if settings.get("measure", "kl") == "kl":
        return kl(first, second)
    return alpha_beta(second, first, 0.2, 0.7)


def allowed(student: Row, teacher: Row) -> list[int]:
    """The entries neither side rules out."""
    return [v for v in range(len(student)) if min(student[v], teacher[v]) > -math.inf]


def normalised(scores: Row, how: str) -> list[float]:
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((z - mean) ** 2 for z in scores) / len(scores)) or 1.0
    width = (max(scores) - min(scores)) or 1.0
    return {
        "none": lambda: list(scores),
        "mean": lambda: [z - mean for z in scores],
        "std": lambda: [(z - mean) / std for z in scores],
        "min": lambda: [z - min(scores) for z in scores],
        "max": lambda: [z - max(scores) for z in scores],
        "range": lambda: [(z - min(scores)) / width for z in scores],
    }[how]()


def weight_of(whose: str, student: Row, teacher: Row, temperature: float = 1.0) -> list[float]:
    if whose == "uniform":
        return [1 / len(student)] * len(student)
    return exp(log_softmax(student if whose == "student" else teacher, temperature))


def direct_logit(student: Row, teacher: Row, settings: Mapping[str, Any]) -> float:
    kept = allowed(student, teacher)
    s, t = [student[v] for v in kept], [teacher[v] for v in kept]
    how = settings.get("normalisation", "none")
    w = weight_of(settings.get("weight", "uniform"), s, t)
    pairs = zip(w, normalised(s, how), normalised(t, how), strict=True)
    return sum(wv * (a - b) ** 2 for wv, a, b in pairs) / 2


def concrete_score_weights(
    student: Row, teacher: Row, settings: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    temperature = settings.get("weight_temperature", 1.0)

    def weight(whose: str) -> list[float]:
        return weight_of(whose, student, teacher, temperature)

    if settings.get("mixture") is not None:
        a = settings["mixture"]
        m = [a * p + (1 - a) * q for p, q in zip(weight("teacher"), weight("student"), strict=True)]
        return m, m
    first, second = settings.get("weights") or ("student", "student")
    return weight(first), weight(second)


def double_sum(student: Row, teacher: Row, w1: Row, w2: Row) -> float:
    """The paper's equation 8, halved: over all pairs, O(V^2)."""
    d = [a - b for a, b in zip(student, teacher, strict=True)]
    pairs = [(y, x) for y in range(len(d)) for x in range(len(d))]
    return sum(w1[y] * w2[x] * (d[x] - d[y]) ** 2 for y, x in pairs) / 4


def concrete_score(student: Row, teacher: Row, settings: Mapping[str, Any]) -> float:
    kept = allowed(student, teacher)
    s, t = [student[v] for v in kept], [teacher[v] for v in kept]
    return double_sum(s, t, *concrete_score_weights(s, t, settings))


def cross_entropy(
    student: Row, teacher: Row, settings: Mapping[str, Any], label: int | None
) -> float:
    logp = log_softmax(student)
    if label is not None and settings.get("labels", "auto") != "teacher":
        return -logp[label]
    p = exp(log_softmax(teacher))
    return sum(-a * b for a, b in zip(p, logp, strict=True) if a > 0)


def term(lp: float, lq: float) -> float:
    """One entry of KL(p || q)."""
    return math.exp(lp) * (lp - lq) if math.exp(lp) > 0 else 0.0


def terms(q: Row, p: Row, settings: Mapping[str, Any]) -> list[float]:
    """What each entry contributes to one of the divergences that can be clipped."""
    pairs = list(zip(p, q, strict=True))
    if settings["kind"] == "forward_kl":
        return [term(lp, lq) for lp, lq in pairs]
    if settings["kind"] == "reverse_kl":
        return [term(lq, lp) for lp, lq in pairs]
    share = settings.get("teacher_share", 0.5)
    scale = share * (1 - share) if settings.get("scaled") else 1.0
    sides = zip(pairs, mix(p, q, share), strict=True)
    return [(share * term(lp, m) + (1 - share) * term(lq, m)) / scale for (lp, lq), m in sides]


def clipped(each: Row, clip: Mapping[str, Any]) -> float:
    """A sum of terms, under a clip."""
    if clip["kind"] == "none":
        return sum(each)
    if clip["kind"] == "pointwise":
        return sum(min(x, clip["threshold"]) for x in each)
    return min(sum(each), clip["threshold"])


def restricted(q: Row, p: Row, support: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Both rows of log-probabilities over the classes of a support."""
    count, by = support.get("num_entries", 100), support.get("chosen_by", "teacher")

    def top(side: Row) -> set[int]:
        return set(sorted(range(len(side)), key=lambda v: -side[v])[:count])

    ids = top(p) if by == "teacher" else top(q) if by == "student" else top(p) | top(q)

    def classes(side: Row) -> list[float]:
        kept = [side[v] for v in sorted(ids)]
        if support.get("rest", "tail_bucket") == "tail_bucket":
            return [*kept, log(sum(math.exp(x) for v, x in enumerate(side) if v not in ids))]
        return log_softmax(kept) if max(kept) > -math.inf else kept

    return classes(q), classes(p)


def uld(q: Row, p: Row) -> float:
    return sum(abs(a - b) for a, b in zip(sorted(exp(q)), sorted(exp(p)), strict=True))


def sampled_token(q: Row, p: Row, label: int) -> float:
    return 0.0 if q[label] == p[label] else q[label] - p[label]


def divergence(q: Row, p: Row, settings: Mapping[str, Any]) -> float:
    """Any kind that sees two rows of log-probabilities: student, then teacher."""
    get = settings.get
    if "support" in settings:
        q, p = restricted(q, p, settings["support"])
    if "support" in settings or "clip" in settings:
        return clipped(terms(q, p, settings), get("clip", {"kind": "none"}))
    share = get("teacher_share", 0.1)
    student_share = get("student_share", 0.1)
    reverse = get("reverse_weight", 0.5)
    jsd_share = get("teacher_share", 0.5)
    scale = jsd_share * (1 - jsd_share) if get("scaled") else 1.0
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jeffreys": lambda: kl(p, q) + kl(q, p),
        "symmetric_kl": lambda: (1 - reverse) * kl(p, q) + reverse * kl(q, p),
        "jsd": lambda: jsd(q, p, jsd_share) / scale,
        "skew_forward_kl": lambda: kl(p, mix(p, q, share)),
        "skew_reverse_kl": lambda: kl(q, mix(q, p, student_share)),
        "total_variation": lambda: total_variation(q, p),
        "alpha_beta": lambda: alpha_beta(q, p, get("alpha", 0.2), get("beta", 0.7)),
        "adaptive_kl": lambda: adaptive_kl(q, p, get("head_mass", 0.5)),
        "amid": lambda: amid(q, p, settings),
        "todi": lambda: todi(q, p),
        "aligned_kl": lambda: kl(p, q),
        "uld": lambda: uld(q, p),
    }[settings["kind"]]()


def value(
    settings: Mapping[str, Any], student: Row, teacher: Row, label: int | None = None
) -> float:
    """What an objective of these settings must answer for one position's raw scores."""
    match settings["kind"]:
        case "direct_logit":
            return direct_logit(student, teacher, settings)
        case "concrete_score":
            return concrete_score(student, teacher, settings)
        case "cross_entropy":
            return cross_entropy(student, teacher, settings, label)
        case "sampled_token" | "policy_gradient" as kind:
            assert label is not None
            t = settings.get("temperature", 1.0)
            q, p = log_softmax(student, t), log_softmax(teacher, t)
            return -q[label] if kind == "policy_gradient" else sampled_token(q, p, label)
        case "weighted_sum":
            return sum(
                part["weight"] * value(part["objective"], student, teacher, label)
                for part in settings["parts"]
            )
        case _:
            # With one vocabulary, aligned_kl is the divergence that it is made of.
            settings = settings.get("divergence", settings)
            t = settings.get("temperature", 1.0)
            q, p = log_softmax(student, t), log_softmax(teacher, t)
            return divergence(q, p, settings) * (t**2 if settings.get("scale_by_t2") else 1)
