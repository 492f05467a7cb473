"""Hidden states kept by content, up to a number of bytes."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class RowKey:
    """What identifies an answer: the row's content, and which positions of it are asked about."""

    content: str
    predicts: tuple[int, ...]


@final
class HiddenMemory:
    """Exact, in their own dtype, in main memory.

    Rows come again once an epoch, in a new order. Once the room is used up the rows kept stay, as
    throwing out the oldest would throw out each row shortly before it comes again.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._rows: dict[RowKey, Tensor] = {}
        self.num_bytes = 0
        """Memory in use."""
        self.num_hits = 0
        """Rows found so far."""

    def find(self, key: RowKey) -> Float[Tensor, "T W"] | None:
        """The hidden states kept under this key, or None."""
        found = self._rows.get(key)
        self.num_hits += found is not None
        return found

    def keep(self, key: RowKey, hidden: Float[Tensor, "T W"]) -> None:
        """Keep the row if there is room for it; nobody else may hold this very tensor."""
        num_bytes = hidden.numel() * hidden.element_size()
        if key not in self._rows and self.num_bytes + num_bytes <= self._most_bytes:
            self._rows[key] = hidden.detach().to("cpu")
            self.num_bytes += num_bytes
