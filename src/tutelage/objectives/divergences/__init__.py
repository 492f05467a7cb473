"""Objectives that compare two next-token distributions, with the pure functions behind them."""

from typing import TypeAlias

from tutelage.objectives.divergences.adaptive import AdaptiveKL, ToDi, adaptive_kl, todi
from tutelage.objectives.divergences.alpha_beta import AlphaBeta, alpha_beta
from tutelage.objectives.divergences.amid import AMiD, alpha_mixture_logp
from tutelage.objectives.divergences.contrastive import (
    adaptive_share,
    contrastive_pair,
    sequence_gap,
    student_text_weight,
)
from tutelage.objectives.divergences.entrywise import Entrywise
from tutelage.objectives.divergences.kl import (
    ForwardKL,
    Jeffreys,
    ReverseKL,
    SymmetricKL,
    forward_kl,
    jeffreys,
    reverse_kl,
    symmetric_kl,
)
from tutelage.objectives.divergences.mixtures import (
    JSD,
    SkewForwardKL,
    SkewReverseKL,
    jsd,
    mixture_logp,
    skew_forward_kl,
    skew_reverse_kl,
)
from tutelage.objectives.divergences.total_variation import TotalVariation, total_variation

Divergence: TypeAlias = (
    ForwardKL
    | ReverseKL
    | Jeffreys
    | SymmetricKL
    | JSD
    | SkewForwardKL
    | SkewReverseKL
    | TotalVariation
    | AlphaBeta
    | AdaptiveKL
    | AMiD
    | ToDi
)
"""Every objective that compares two distributions entry by entry."""

__all__ = [
    "JSD",
    "AMiD",
    "AdaptiveKL",
    "AlphaBeta",
    "Divergence",
    "Entrywise",
    "ForwardKL",
    "Jeffreys",
    "ReverseKL",
    "SkewForwardKL",
    "SkewReverseKL",
    "SymmetricKL",
    "ToDi",
    "TotalVariation",
    "adaptive_kl",
    "adaptive_share",
    "alpha_beta",
    "alpha_mixture_logp",
    "contrastive_pair",
    "forward_kl",
    "jeffreys",
    "jsd",
    "mixture_logp",
    "reverse_kl",
    "sequence_gap",
    "skew_forward_kl",
    "skew_reverse_kl",
    "student_text_weight",
    "symmetric_kl",
    "todi",
    "total_variation",
]
