"""Objectives that compare two next-token distributions, with the pure functions behind them."""

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
from tutelage.objectives.divergences.mixtures import JSD, jsd

__all__ = [
    "JSD",
    "ForwardKL",
    "Jeffreys",
    "ReverseKL",
    "SymmetricKL",
    "forward_kl",
    "jeffreys",
    "jsd",
    "reverse_kl",
    "symmetric_kl",
]
