"""How a batch is cut into the parts of its steps, and which rows of it a teacher is asked about."""

from collections.abc import Sequence

import torch

from tutelage.core.records import Rollout
from tutelage.objectives.policies import Distill


def parts_of(
    num_rows: int, *, num_parts: int, unit: int, generator: torch.Generator
) -> list[list[int]]:
    """The places of a batch in parts of equal size, drawn unit by unit; each part in order.

    A single part is the batch as it is.

    Args:
        unit: neighbours that stay together; divides the rows, and the parts divide the units.
    """
    num_units = num_rows // unit
    order: list[int] = torch.randperm(num_units, generator=generator).tolist()
    size = num_units // num_parts
    parts = (sorted(order[first : first + size]) for first in range(0, num_units, size))
    return [[one * unit + at for one in part for at in range(unit)] for part in parts]


def picks_of(
    rows: Sequence[Rollout], *, group_size: int, distill: Distill, generator: torch.Generator
) -> list[bool]:
    """Which completions of each prompt are distilled; those of one prompt lie side by side."""
    picked: list[bool] = []
    for first in range(0, len(rows), group_size):
        group = rows[first : first + group_size]
        match distill:
            case "all":
                picked += [True] * len(group)
                continue
            case "best":
                rewards = [-torch.inf if row.reward is None else row.reward for row in group]
                chosen = rewards.index(max(rewards))
            case "random":
                chosen = int(torch.randint(len(group), (), generator=generator))
        picked += [at == chosen for at in range(len(group))]
    return picked
