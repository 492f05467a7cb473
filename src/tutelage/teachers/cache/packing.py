"""Token ids in two bytes, or in two and a half where a vocabulary needs more than sixteen bits."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tutelage.core.errors import ConfigError

_LOW, _MOST = 1 << 16, 1 << 20


def pack_ids(
    ids: Int[Tensor, "T K"], num_entries: int
) -> tuple[Shaped[Tensor, "T K"], Shaped[Tensor, "T half"] | None]:
    """The low sixteen bits of each id, and their next four, two ids a byte, where there are any.

    Raises:
        ConfigError: a vocabulary of more than twenty bits.
    """
    if num_entries > _MOST:
        raise ConfigError(
            f"The vocabulary has {num_entries} entries; a cache of ids can hold {_MOST} at most. "
            "Cache hidden states."
        )
    low = (ids % _LOW).to(torch.uint16)
    if num_entries <= _LOW:
        return low, None
    high = ids // _LOW
    if high.shape[1] % 2:
        high = torch.cat([high, high.new_zeros(len(high), 1)], dim=1)
    return low, (high[:, 0::2] + 16 * high[:, 1::2]).to(torch.uint8)


def unpack_ids(
    low: Shaped[Tensor, "T K"], high: Shaped[Tensor, "T half"] | None
) -> Int[Tensor, "T K"]:
    """What `pack_ids` was given."""
    ids = low.to(torch.int64)
    if high is None:
        return ids
    pairs = high.to(torch.int64)
    both = torch.stack([pairs % 16, pairs // 16], dim=2).flatten(1)
    return ids + _LOW * both[:, : ids.shape[1]]
