"""How each number is called, written and judged, for every page."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

NOTHING = "—"
"""Shown where there is no number, or none that is finite."""

GAP = "\u00a0"
"""Between a number and its unit, so that no line ends between them."""


def plain(value: float | None, *, digits: int = 3) -> str:
    """A number for people: enough digits to compare, no noise, a dash for NaN."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-3:  # noqa: PLR2004 - more figures than a reader can count
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return _minus(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")
    return _minus(f"{value:,.{_decimals(size, digits)}f}")


def _two_decimals(value: float | None) -> str:
    small = value is not None and abs(value) < 1000  # noqa: PLR2004 - behind it decimals are noise
    return f"{value:.2f}" if small else plain(value)


def _decimals(size: float, digits: int) -> int:
    """One more for small numbers, one less for each figure before the point behind the first."""
    for limit, extra in ((0.1, 1), (10, 0), (100, -1), (1000, -2)):
        if size < limit:
            return max(0, digits + extra)
    return 0


def _minus(text: str) -> str:
    return text.replace("-", "−")  # noqa: RUF001 - a true minus is as wide as a plus


def short_count(value: float | None) -> str:
    """A count in four figures: 134.5 M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.4g}{GAP}{unit}"
    return f"{value:,.0f}"


def percent(value: float | None, *, digits: int = 1) -> str:
    """A share in percent."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return _minus(f"{100 * value:.{digits}f}{GAP}%")


def duration(seconds: float | None) -> str:
    """A time in the two units that matter: 5 min 12 s."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.3g}{GAP}s"
    whole = round(seconds)
    if whole < 3600:  # noqa: PLR2004 - an hour
        return f"{whole // 60}{GAP}min {whole % 60}{GAP}s"
    return f"{whole // 3600}{GAP}h {whole % 3600 // 60}{GAP}min"


@final
@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number that runs report."""

    label: str
    unit: str = ""
    better: Literal["lower", "higher", "neither"] = "neither"
    show: Callable[[float | None], str] = plain
    meaning: str = ""
    """One sentence for a reader who meets it for the first time."""

    @property
    def is_share(self) -> bool:
        """Between 0 and 1, and shown in percent."""
        return self.show is percent

    @property
    def axis(self) -> str:
        """The label with its unit, for an axis or the head of a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


_MEASURES = {
    "forward_kl": Measure(
        label="Forward KL",
        unit="nats",
        better="lower",
        meaning="KL(teacher‖student) per held-out token: 0 when the student says exactly what "
        "the teacher says.",
    ),
    "reverse_kl": Measure(
        label="Reverse KL",
        unit="nats",
        better="lower",
        meaning="KL(student‖teacher) per held-out token: large where the student likes what the "
        "teacher would not say.",
    ),
    "top1_agreement": Measure(
        label="Top-1 agreement",
        better="higher",
        show=percent,
        meaning="Share of held-out tokens where both models' likeliest token is the same.",
    ),
    "perplexity": Measure(
        label="Perplexity",
        better="lower",
        show=_two_decimals,
        meaning="Of the held-out completions; 1 would be certainty.",
    ),
    "bits_per_byte": Measure(
        label="Bits a byte",
        better="lower",
        show=_two_decimals,
        meaning="Of the held-out text that both tokenizers can say: comparable across tokenizers, "
        "as perplexity is not.",
    ),
    "teacher_bits_per_byte": Measure(label="The teacher's bits a byte", show=_two_decimals),
    "aligned_kl": Measure(
        label="Aligned KL",
        unit="nats",
        better="lower",
        meaning="Forward KL over what may come next where tokens of both tokenizers begin "
        "together, for each held-out token.",
    ),
    "held_out_loss": Measure(label="Held-out loss"),
    "aligned_single_share": Measure(label="Tokens beside one of the teacher's", show=percent),
    "aligned_token_share": Measure(label="Tokens with a partner", show=percent),
    "aligned_byte_share": Measure(label="Aligned bytes", show=percent),
    "aligned_lost_row_share": Measure(label="Rows the teacher cannot say", show=percent),
    "num_parameters": Measure(label="Parameters", show=short_count),
    "tokens_per_second": Measure(label="Tokens/s", show=short_count),
    "trained_tokens": Measure(label="Trained tokens", show=short_count),
    "seconds": Measure(label="Time", show=duration),
    "loss": Measure(label="Training loss", unit="nats"),
    "learning_rate": Measure(label="Learning rate"),
    "grad_norm": Measure(label="Gradient norm"),
    "num_tokens": Measure(label="Trained tokens a step", show=short_count),
    "t": Measure(label="TAID t"),
    "student_entropy": Measure(label="Student entropy", unit="nats"),
    "teacher_entropy": Measure(label="Teacher entropy", unit="nats"),
    "reward": Measure(
        label="Reward",
        better="higher",
        meaning="What a verifier finds the student's own answers to held-out prompts worth, on "
        "average.",
    ),
    "telling_share": Measure(label="Rows whose group was not unanimous", show=percent),
    "written_tokens": Measure(label="Tokens per answer"),
    "completion_tokens": Measure(label="Tokens per completion"),
    "written_forward_kl": Measure(label="Forward KL on its own text", unit="nats"),
    "written_reverse_kl": Measure(label="Reverse KL on its own text", unit="nats"),
    "truncated_share": Measure(label="Cut completions", show=percent),
    "reversed_top_share": Measure(label="Reversed favourites", show=percent),
    "clipped_entries_share": Measure(label="Clipped entries", show=percent),
    "generated_tokens": Measure(label="Written tokens", show=short_count),
    "student_share": Measure(label="Rows written by the student", show=percent),
    "fresh_share": Measure(label="Rows written anew", show=percent),
    "probed_shift": Measure(
        label="Routing shift, same rows",
        meaning="Mean distance of the routers' probabilities from those of the last measurement, "
        "on the same rows; at most 1.41.",
    ),
    "routing_shift": Measure(
        label="Routing shift, own text",
        meaning="Mean distance of the routers' probabilities from those of the student that wrote "
        "the completions; at most 1.41.",
    ),
    "clip_fraction": Measure(label="Clipped tokens", show=percent),
    "approx_kl": Measure(label="KL to the student that wrote", unit="nats"),
    "max_violation": Measure(
        label="MaxVio",
        unit="fair shares",
        better="lower",
        meaning="What the busiest expert has above its fair share, on average over layers; 0 is "
        "even load.",
    ),
    "dead_experts": Measure(label="Dead experts", better="lower"),
    "router_entropy": Measure(label="Router entropy", unit="nats"),
    "router_bias": Measure(label="Largest router bias"),
    "router_loss": Measure(label="Router loss"),
    "expert_advantage": Measure(label="Largest expert advantage"),
    "expert_alignment": Measure(
        label="Experts and kinds of text",
        unit="NMI",
        meaning="Mutual information of experts and kinds of text, normalised: 0 where experts do "
        "not care, 1 where each kind has its own.",
    ),
    "accuracy": Measure(label="Accuracy", better="higher", show=percent),
}


def measure(name: str) -> Measure:
    """What is known of a number; one nobody has described is shown under its own name."""
    return _MEASURES.get(name) or Measure(label=words(name))


_NAMES = {"cross_entropy": "Cross-entropy", "taid": "TAID", "csd": "CSD", "jsd": "JSD"}


def words(name: str) -> str:
    """A name from a file, as a person would write it."""
    known = _NAMES.get(name)
    if known is not None or name != name.lower():
        return known or name
    spaced = name.replace("_", " ").strip().replace(" kl", " KL")
    return spaced[:1].upper() + spaced[1:]
