"""How far a student is from its teacher on held-out rows, and what it says."""

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

__all__ = [
    "DivergenceReport",
    "EvaluationOptions",
    "PositionCurve",
    "evaluate_divergence",
    "generate_samples",
    "shown_prompt",
    "token_rows",
    "tokens_per_second",
    "undisturbed",
]
