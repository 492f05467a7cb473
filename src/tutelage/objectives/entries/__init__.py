"""Which vocabulary entries a divergence looks at, and how much one of them may count."""

from tutelage.objectives.entries.clip import (
    Clip,
    ClipSettings,
    NoClip,
    PointwiseClip,
    TokenSumClip,
    TokenWeightClip,
    pointwise_clip,
    token_sum_clip,
    token_weight_clip,
)
from tutelage.objectives.entries.support import Restricted, TopSupport, tail_logp

__all__ = [
    "Clip",
    "ClipSettings",
    "NoClip",
    "PointwiseClip",
    "Restricted",
    "TokenSumClip",
    "TokenWeightClip",
    "TopSupport",
    "pointwise_clip",
    "tail_logp",
    "token_sum_clip",
    "token_weight_clip",
]
