"""Which objective can learn from which answer of a teacher; the table in docs/teachers.md."""

from typing import Literal

from tutelage.core.targets import Rest
from tutelage.objectives.concrete_score import ConcreteScore
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.divergences import ForwardKL
from tutelage.objectives.divergences.entrywise import Entrywise
from tutelage.objectives.entries import NoClip
from tutelage.objectives.objective import Divergence, Objective
from tutelage.objectives.union import WeightedSum

Answer = Literal["hidden", "top_k", "sampled"]
"""What a teacher answers with: its last hidden states, its likeliest entries, or drawn ids."""


def refusal(
    objective: Objective, answer: Answer, *, temperature: float = 1.0, rest: Rest | None = None
) -> str | None:
    """Why an objective cannot learn from such an answer; None where it can.

    Hidden states tell everything, at any temperature.

    Args:
        temperature: what the teacher's logits were divided by before they became probabilities.
        rest: what becomes of the entries that a top-k answer lacks; None: what suits best.
    """
    if answer == "hidden" or not objective.needs_teacher:
        return None
    if isinstance(objective, WeightedSum):
        reasons = (
            refusal(part.objective, answer, temperature=temperature, rest=rest)
            for part in objective.parts
        )
        return next((reason for reason in reasons if reason is not None), None)
    if answer == "sampled":
        return _of_sampled(objective) or _of_temperature(objective, answer, temperature)
    return _of_top_k(objective, rest) or _of_temperature(objective, answer, temperature)


def _of_sampled(objective: Objective) -> str | None:
    if isinstance(objective, CrossEntropy):
        return None
    if not isinstance(objective, ForwardKL):
        return (
            f"objective.kind is {_kind(objective)}; it must be forward_kl or cross_entropy for "
            "sampled ids: draws stand for the teacher's probabilities only where the loss is "
            "linear in them. Use a top_k or hidden answer."
        )
    if not isinstance(objective.clip, NoClip) or objective.support is not None:
        name = "support" if objective.support is not None else "clip"
        return (
            f"objective.{name} is given; it must be left out for sampled ids, whose single draws "
            "are no probabilities. Use a top_k or hidden answer."
        )
    return None


def _of_top_k(objective: Objective, rest: Rest | None) -> str | None:
    if isinstance(objective, ConcreteScore):
        return _of_concrete_score(objective, rest)
    if not isinstance(objective, Divergence | CrossEntropy):
        return (
            f"objective.kind is {_kind(objective)}; it must be a divergence, cross_entropy or "
            "concrete_score for a top-k answer, which says nothing of the entries it lacks. Use a "
            "hidden answer."
        )
    if isinstance(objective, Entrywise) and objective.support is not None:
        return (
            "objective.support is given; it must be null for a top-k target, which has chosen its "
            "entries already. Leave it out."
        )
    if rest == "truncated" and not isinstance(objective, ForwardKL):
        return (
            f"rest is truncated with {_kind(objective)}; it must be tail_bucket or renormalised: "
            "other objectives than forward_kl would reward leaving the kept entries. Change it."
        )
    return None


def _of_concrete_score(objective: ConcreteScore, rest: Rest | None) -> str | None:
    by_teacher = objective.weights == ("teacher", "teacher") or objective.mixture == 1
    if not by_teacher:
        return (
            "objective.weights are not (teacher, teacher); they must be for concrete_score on a "
            "top-k answer, for student and uniform weights look at every entry. Set weights: "
            "[teacher, teacher], or use a hidden answer."
        )
    if rest not in (None, "renormalised"):
        return (
            f"rest is {rest} with concrete_score; it must be renormalised or left out, for there "
            "are no scores to compare of entries lumped together. Leave it out."
        )
    return None


def _of_temperature(objective: Objective, answer: Answer, temperature: float) -> str | None:
    wanted = objective.temperature if isinstance(objective, Divergence) else 1.0
    if wanted == temperature:
        return None
    target = "a top-k target" if answer == "top_k" else "sampled ids"
    return (
        f"objective.temperature is {wanted:g}; it must be {temperature:g} for {target} taken at "
        "that temperature. The kept probabilities say how much mass the rest has but not over how "
        "many tokens, so they cannot be divided again. Take the answers at the objective's "
        "temperature, or use a live teacher or hidden states."
    )


def _kind(objective: Objective) -> str:
    return str(objective.model_dump().get("kind", type(objective).__name__))
