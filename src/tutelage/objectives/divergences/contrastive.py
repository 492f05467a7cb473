"""DistiLLM-2's pair: skewed forward KL on the teacher's text, skewed reverse KL on the student's.

Pure functions over rows. The two halves themselves are `skew_forward_kl` and `skew_reverse_kl`,
which take the shares made here position by position.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sequence_gap(
    leader_label_logp: Float[Tensor, "B T"],
    follower_label_logp: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    """By how much the leader finds each row's own tokens likelier than the follower; no gradient.

        exp(mean leader logp) - exp(mean follower logp)

    The leader is the teacher on the teacher's text, the student on the student's. A row with no
    trained token has no gap.
    """
    length = loss_mask.sum(dim=-1).clamp(min=1)

    def likelihood(logp: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
        return (torch.where(loss_mask, logp.detach(), 0.0).sum(dim=-1) / length).exp()

    return likelihood(leader_label_logp) - likelihood(follower_label_logp)


def adaptive_share(
    gap: Float[Tensor, " B"], *, first_gap: float, base_share: float = 0.1
) -> Float[Tensor, " B"]:
    """The share of a mixture for each row: small where the two models are still far apart.

        clip(1 - (1 - base_share) * first_gap / (gap + 1e-5), 0.01, base_share)

    Args:
        gap: from `sequence_gap`.
        first_gap: the mean gap at the beginning of training.

    Source: Ko et al. 2025 (DistiLLM-2), arXiv:2503.07067, and its code.
    """
    widened = gap + 1e-5
    ratio = first_gap / torch.where(widened == 0, 1e-5, widened)
    return (1 - (1 - base_share) * ratio).clamp(0.01, base_share)


def student_text_weight(progress: float, *, ramp: bool = False) -> float:
    """The weight of the student's text, beta in the paper: 1, or with `ramp` from 1 to 1.5.

    Args:
        progress: the part of training that is done, from 0 to 1. The ramp ends half way.
    """
    return 1 + 0.5 * min(1.0, 2 * progress) if ramp else 1.0


def contrastive_pair(
    on_teacher_text: Float[Tensor, ""], on_student_text: Float[Tensor, ""], *, weight: float = 1.0
) -> Float[Tensor, ""]:
    """(2 - weight) * on_teacher_text + weight * on_student_text: DistiLLM-2's whole loss.

    Args:
        on_teacher_text: the mean `skew_forward_kl`, with its adaptive shares.
        on_student_text: the mean `skew_reverse_kl`, with its own and `detach_mixture`.
        weight: from `student_text_weight`.

    Source: Ko et al. 2025 (DistiLLM-2), arXiv:2503.07067, and its code.
    """
    return (2 - weight) * on_teacher_text + weight * on_student_text
