"""How far a student is from its teacher on held-out rows, and what it says."""

from tutelage.evaluation.crossed import evaluate_crossed
from tutelage.evaluation.divergence import (
    DivergenceReport,
    EvaluationOptions,
    PositionCurve,
    evaluate_divergence,
)
from tutelage.evaluation.samples import generate_samples, shown_prompt
from tutelage.evaluation.throughput import tokens_per_second
from tutelage.evaluation.tokens import token_rows
from tutelage.evaluation.undisturbed import undisturbed
from tutelage.evaluation.written import (
    Writer,
    evaluate_written,
    judged,
    reward_of,
    written_numbers,
)

__all__ = [
    "DivergenceReport",
    "EvaluationOptions",
    "PositionCurve",
    "Writer",
    "evaluate_crossed",
    "evaluate_divergence",
    "evaluate_written",
    "generate_samples",
    "judged",
    "reward_of",
    "shown_prompt",
    "token_rows",
    "tokens_per_second",
    "undisturbed",
    "written_numbers",
]
