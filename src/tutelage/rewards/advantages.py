"""How much better a rollout did than the others of its group: pure arithmetic on rewards."""

from typing import Annotated, Literal, final

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import ConfigError, DataError, NumericsError
from tutelage.core.settings import Settings


@final
class AdvantageSettings(Settings):
    """How the rewards of one prompt's completions are compared."""

    normalise: Literal["std", "none"] = "std"
    """Divide by the group's deviation (GRPO), or leave the differences as they are (Dr. GRPO)."""
    deviation: Literal["population", "sample"] = "population"
    """Of the n rewards themselves, or of what they were drawn from (divided by n - 1)."""
    eps: Annotated[float, Ge(0)] = 1e-6
    """Added to the deviation."""
    all_equal: Literal["count", "error"] = "count"
    """What becomes of a batch in which every prompt's completions have equal rewards: it is
    counted, and noted the first time; or it ends the run."""


def group_advantages(
    rewards: Float[Tensor, " R"],
    group_of: Int[Tensor, " R"],
    *,
    normalise: Literal["std", "none"] = "std",
    deviation: Literal["population", "sample"] = "population",
    eps: float = 1e-6,
) -> Float[Tensor, " R"]:
    """Each reward minus the mean of its group, in units of the group's deviation if asked for.

        (r_i - mean) / (std + eps)

    A group whose rewards are all equal teaches nothing: its advantages are zeros, exactly, even
    where the mean of equal numbers would be off by a rounding. Computed in float64, returned in
    the precision of `rewards`.

    Args:
        rewards: one for each of the R rollouts.
        group_of: which group each belongs to; any whole numbers, in any order.
        normalise: "std" divides by the deviation (GRPO); "none" leaves the differences as they
            are (Dr. GRPO).
        deviation: of the n rewards themselves (divided by n), or of what they were drawn from
            (by n - 1).
        eps: keeps a deviation near zero from blowing up rounding; at least 0.

    Raises:
        DataError: a group of one, which has nothing to be compared with, or group numbers that
            are not one for each reward.
        NumericsError: a reward that is not finite.

    Source: Shao et al. 2024 (GRPO), arXiv:2402.03300; without deviation, Liu et al. 2025
    (Dr. GRPO), arXiv:2503.20783.
    """
    _refuse_bad_input(rewards, group_of, eps)
    numbers, place = torch.unique(group_of, return_inverse=True)
    sizes = torch.bincount(place, minlength=len(numbers))
    if (sizes == 1).any():
        alone = numbers[sizes == 1][0].item()
        raise DataError(
            f"group_of has one rollout in group {alone}; it must be at least 2. "
            "Sample more completions for each prompt, or use rewards without groups."
        )

    values = rewards.double()
    centred = values - _group_sum(values, place, sizes)[place] / sizes[place]
    if normalise == "std":
        divisor = sizes if deviation == "population" else sizes - 1
        variance = _group_sum(centred.square(), place, sizes) / divisor
        centred = centred / (variance.sqrt()[place] + eps)
    centred = torch.where(_all_equal(values, place, sizes)[place], 0.0, centred)
    return centred.to(rewards.dtype)


def _group_sum(
    values: Float[Tensor, " R"], place: Int[Tensor, " R"], sizes: Int[Tensor, " G"]
) -> Float[Tensor, " G"]:
    return values.new_zeros(sizes.shape).index_add(0, place, values)


def _all_equal(
    values: Float[Tensor, " R"], place: Int[Tensor, " R"], sizes: Int[Tensor, " G"]
) -> Tensor:
    empty = values.new_zeros(sizes.shape)
    lowest = empty.scatter_reduce(0, place, values, "amin", include_self=False)
    highest = empty.scatter_reduce(0, place, values, "amax", include_self=False)
    return lowest == highest


def _refuse_bad_input(rewards: Tensor, group_of: Tensor, eps: float) -> None:
    if rewards.shape != group_of.shape:
        raise DataError(
            f"group_of has {len(group_of)} entries; it must be {len(rewards)}, one for each "
            "reward. Number the group of every rollout."
        )
    if not torch.isfinite(rewards).all():
        bad = rewards[~torch.isfinite(rewards)][0].item()
        raise NumericsError(
            f"rewards has {bad}; it must be finite numbers. Find the verifier that returned it."
        )
    if not eps >= 0:
        raise ConfigError(f"eps is {eps}; it must be at least 0. Use 1e-6.")
