"""Values and in-place gradients of a few cached rows: the arithmetic inside the fused loss."""

from tutelage.objectives.row_kernels.amid import amid_alpha_beta_rows, amid_kl_rows
from tutelage.objectives.row_kernels.clipped import (
    forward_kl_pointwise_rows,
    jsd_pointwise_rows,
    reverse_kl_pointwise_rows,
    slowed_above,
    stopped_above,
)
from tutelage.objectives.row_kernels.compared import all_finite, forget_scratch, scratch_like
from tutelage.objectives.row_kernels.concrete_score import (
    concrete_score_rows,
    mixture_concrete_score_rows,
)
from tutelage.objectives.row_kernels.cross_entropy import (
    sampled_ids_rows,
    sampled_token_rows,
    teacher_cross_entropy_rows,
    token_cross_entropy_rows,
)
from tutelage.objectives.row_kernels.direct_logit import direct_logit_rows
from tutelage.objectives.row_kernels.kl import (
    adaptive_kl_rows,
    forward_kl_rows,
    reverse_kl_rows,
    symmetric_kl_rows,
    todi_rows,
    total_variation_rows,
)
from tutelage.objectives.row_kernels.mixtures import (
    jsd_rows,
    skew_forward_kl_rows,
    skew_reverse_kl_rows,
)
from tutelage.objectives.row_kernels.moves import budget_rows, mix_rows
from tutelage.objectives.row_kernels.powers import alpha_beta_rows
from tutelage.objectives.row_kernels.support import (
    Kept,
    restricted_rows,
    rows_against_classes,
)

__all__ = [
    "Kept",
    "adaptive_kl_rows",
    "all_finite",
    "alpha_beta_rows",
    "amid_alpha_beta_rows",
    "amid_kl_rows",
    "budget_rows",
    "concrete_score_rows",
    "direct_logit_rows",
    "forget_scratch",
    "forward_kl_pointwise_rows",
    "forward_kl_rows",
    "jsd_pointwise_rows",
    "jsd_rows",
    "mix_rows",
    "mixture_concrete_score_rows",
    "restricted_rows",
    "reverse_kl_pointwise_rows",
    "reverse_kl_rows",
    "rows_against_classes",
    "sampled_ids_rows",
    "sampled_token_rows",
    "scratch_like",
    "skew_forward_kl_rows",
    "skew_reverse_kl_rows",
    "slowed_above",
    "stopped_above",
    "symmetric_kl_rows",
    "teacher_cross_entropy_rows",
    "todi_rows",
    "token_cross_entropy_rows",
    "total_variation_rows",
]
