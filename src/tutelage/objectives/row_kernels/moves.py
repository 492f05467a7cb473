"""Row kernels of moved targets: the teacher's rows, overwritten in place."""

import torch
from jaxtyping import Float
from torch import Tensor

Share = float | Float[Tensor, " R"]


def mix_rows(student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], t: Share) -> None:
    """(1 - t) * student + t * teacher over the teacher's finite scores: TAID's target."""
    if isinstance(t, Tensor):
        torch.lerp(student, teacher, t.to(teacher.dtype)[:, None], out=teacher)
    else:
        torch.lerp(student, teacher, t, out=teacher)
