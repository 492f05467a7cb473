"""What a few seeds allow to say: intervals of means, and which differences separate.

Pure functions on Python floats. With few seeds the t distribution is what makes an interval
honest: at three seeds it is more than twice as wide as the normal one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev, variance
from typing import Literal, final

# Relative gap below which two variants count as the same: far above rounding in float64, far
# below anything that a different seed would change.
_SAME = 1e-4


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its uncertainty. One value alone has no ends: `low` and `high` are None."""

    mean: float
    low: float | None
    high: float | None
    num_values: int

    @property
    def half_width(self) -> float | None:
        """What stands behind the ± sign."""
        return None if self.high is None else self.high - self.mean


Verdict = Literal["separate", "only alone", "not separate", "same", "unknown"]
"""`separate`: also after Holm's correction. `only alone`: only if this pair were the only one
looked at. `same`: equal in every seed. `unknown`: too few seeds to say."""


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more the first variant has than the second, in one metric."""

    interval: Interval
    p_value: float | None
    """Two-sided; None where there are too few seeds to say."""
    paired: bool
    """The same seeds on both sides, so that what a seed does to both cancels out."""
    same: bool
    """Equal in every shared seed, up to rounding."""


def t_tails(t: float, degrees: float) -> float:
    """Probability that Student's t with these degrees of freedom is beyond ±t."""
    return _regularised_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


@cache
def t_quantile(probability: float, degrees: float) -> float:
    """The t below which Student's t falls with this probability, strictly between 0 and 1."""
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; it must be strictly between 0 and 1")
    if probability < 0.5:  # noqa: PLR2004 - the distribution is symmetric
        return -t_quantile(1 - probability, degrees)
    tails = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while t_tails(high, degrees) > tails:
        low, high = high, 2 * high
    # Bisection: a float has 53 bits, so this many halvings exhaust it.
    for _ in range(64):
        middle = (low + high) / 2
        if t_tails(middle, degrees) > tails:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """The mean of at least one value, with the t interval of that mean.

        mean ± t((1 + level) / 2, n - 1) * standard deviation / sqrt(n)

    Source: Student 1908, "The probable error of a mean".
    """
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean=mean, low=None, high=None, num_values=1)
    error = stdev(values) / math.sqrt(len(values))
    return _interval(mean, error, len(values) - 1.0, level, num_values=len(values))


def difference(
    first: Mapping[int, float], second: Mapping[int, float], *, level: float = 0.95
) -> Difference:
    """The first variant minus the second, each given as seed to value.

    Two or more shared seeds: the t interval of the differences by seed, other seeds left out.
    Otherwise Welch's interval, which needs two seeds on each side. With fewer, a difference of
    means without ends.

    Source: Student 1908 (paired); Welch 1947, "The generalization of Student's problem".
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) >= 2:  # noqa: PLR2004 - two points are what a spread needs
        return _paired([first[seed] for seed in shared], [second[seed] for seed in shared], level)
    left, right = list(first.values()), list(second.values())
    mean = fmean(left) - fmean(right)
    if min(len(left), len(right)) < 2:  # noqa: PLR2004 - as above
        alone = Interval(mean=mean, low=None, high=None, num_values=min(len(left), len(right)))
        return Difference(interval=alone, p_value=None, paired=bool(shared), same=False)
    parts = [variance(left) / len(left), variance(right) / len(right)]
    error = math.sqrt(sum(parts))
    if error == 0:
        degrees = float(len(left) + len(right) - 2)
    else:
        spread = parts[0] ** 2 / (len(left) - 1) + parts[1] ** 2 / (len(right) - 1)
        degrees = sum(parts) ** 2 / spread
    interval = _interval(mean, error, degrees, level, num_values=min(len(left), len(right)))
    return Difference(
        interval=interval, p_value=_p_value(mean, error, degrees), paired=False, same=False
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for how many questions were asked, in the order given.

    Looking at fifteen pairs, one of them is likely to stand out by luck; this makes the chance
    of any false alarm, taken together, no larger than the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def verdicts(differences: Sequence[Difference], *, level: float = 0.95) -> list[Verdict]:
    """What may be said of each pair, all pairs of one metric given together."""
    known = [d for d in differences if d.p_value is not None]
    corrected = iter(holm([d.p_value for d in known if d.p_value is not None]))
    said: list[Verdict] = []
    for one in differences:
        if one.p_value is None:
            said.append("unknown")
            continue
        together = next(corrected)
        if one.same:
            said.append("same")
        elif together < 1 - level:
            said.append("separate")
        else:
            said.append("only alone" if one.p_value < 1 - level else "not separate")
    return said


def _paired(left: Sequence[float], right: Sequence[float], level: float) -> Difference:
    gaps = [a - b for a, b in zip(left, right, strict=True)]
    same = all(
        abs(gap) <= _SAME * max(abs(a), abs(b)) for gap, a, b in zip(gaps, left, right, strict=True)
    )
    mean, degrees = fmean(gaps), len(gaps) - 1.0
    error = stdev(gaps) / math.sqrt(len(gaps))
    return Difference(
        interval=_interval(mean, error, degrees, level, num_values=len(gaps)),
        p_value=_p_value(mean, error, degrees),
        paired=True,
        same=same,
    )


def _interval(
    mean: float, error: float, degrees: float, level: float, *, num_values: int
) -> Interval:
    half = t_quantile((1 + level) / 2, degrees) * error
    return Interval(mean=mean, low=mean - half, high=mean + half, num_values=num_values)


def _p_value(mean: float, error: float, degrees: float) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return t_tails(mean / error, degrees)


def _regularised_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0 and x in [0, 1].

    Source: the continued fraction of DLMF 8.17.22, evaluated by Lentz's method (DLMF 3.10).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    # The fraction converges fast only left of the mean; the mirror image serves the right.
    if x > (a + 1) / (a + b + 2):
        return 1 - _regularised_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    fraction = upper = 1.0
    lower = 0.0
    for step in range(1, 10_000):
        half = step // 2
        sign_and_tops = -(a + half) * (a + b + half) if step % 2 else half * (b - half)
        term = sign_and_tops * x / ((a + step - 1) * (a + step))
        lower = 1 / (1 + term * lower)
        upper = 1 + term / upper
        fraction *= upper * lower
        if abs(upper * lower - 1) < 1e-15:  # noqa: PLR2004 - the last bits of a float64
            break
    return front / (a * fraction)
