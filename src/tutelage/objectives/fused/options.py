"""What a caller may choose about the fused path, and what it hands back."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.objectives.moved_targets import Move

LogitsMode = Literal["auto", "native", "split", "fp32"]


@final
@dataclass(frozen=True, kw_only=True)
class FusedOptions:
    """How the fused path computes. None of it changes what is computed, beyond rounding."""

    move: Move | None = None
    """Moves the teacher's rows before the objective sees them (TAID, budget, tempered)."""
    t: float | Float[Tensor, " N"] | None = None
    """The move's clock, for all tokens or for each; None where the move needs none."""
    matmul_dtype: torch.dtype | None = None
    """Casts hidden states and head weights for the matmuls; None keeps the hidden states' dtype."""
    logits: LogitsMode = "auto"
    """How exact the scores of half-precision matmuls are. `native` rounds them to that dtype;
    `split` keeps the rounding error in a second buffer, made by a second matmul; `fp32` never
    rounds them. `auto` takes `fp32` on CUDA, and on CPU `split` for bfloat16, else `fp32`."""
    tile_tokens: int | None = None
    """Tokens in one matmul tile; None chooses by the memory limit."""
    memory_bytes: int = 256 * 2**20
    """About how much the score buffers may take; never less than one small tile."""


@final
@dataclass(frozen=True, kw_only=True)
class FusedLoss:
    """The loss of a micro-batch."""

    loss: Float[Tensor, ""]
    """sum_n token_weights[n] * per_token[n], in nats; differentiable."""
    per_token: Float[Tensor, " N"]
    """Nats of each token, without its weight; carries no gradient. NaN where a row had one."""


@final
@dataclass(frozen=True, kw_only=True)
class Measures:
    """How student and teacher compare, token by token; natural logs, no gradient."""

    student_entropy: Float[Tensor, " N"]
    student_top: Int[Tensor, " N"]
    student_label_logp: Float[Tensor, " N"] | None = None
    """None where the target has no labels."""
    forward_kl: Float[Tensor, " N"] | None = None
    """None, like all that follows, where there is no teacher."""
    reverse_kl: Float[Tensor, " N"] | None = None
    teacher_entropy: Float[Tensor, " N"] | None = None
    agree: Bool[Tensor, " N"] | None = None
    """Both sides put the same entry on top."""
    teacher_label_logp: Float[Tensor, " N"] | None = None
    teacher_top: Int[Tensor, " N"] | None = None
