"""What each of several teachers counted, on average, where a router decides it row by row."""

from collections.abc import Mapping, Sequence

import torch

from tutelage.training.ranks import Ranks


def share_numbers(found: Sequence[Mapping[str, float]], ranks: Ranks) -> Mapping[str, float]:
    """For the log: each teacher's mean weight over the rows of all micro-batches and ranks.

    All ranks call it alike, and every micro-batch names all teachers; nothing where none does.

    Args:
        found: of each micro-batch, the sum of each teacher's weights, which are 1 a row in all.
    """
    if not found:
        return {}
    here = torch.tensor([[*one.values()] for one in found], dtype=torch.float64).sum(dim=0)
    sums = ranks.total(here.to(ranks.device))
    means: list[float] = (sums / sums.sum()).tolist()
    return {f"teacher_weight_{name}": mean for name, mean in zip(found[0], means, strict=True)}
