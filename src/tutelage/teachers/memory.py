"""Answers kept by content, up to a number of bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class RowKey:
    """What identifies an answer: the row's content, and which positions of it are asked about."""

    content: str
    predicts: tuple[int, ...]


@final
class AnswerMemory:
    """Exact, in their own dtype, in main memory.

    Rows come again once an epoch, in a new order. Once the room is used up the rows kept stay, as
    throwing out the oldest would throw out each row shortly before it comes again.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._rows: dict[RowKey, Mapping[str, Tensor]] = {}
        self.num_bytes = 0
        """Memory in use."""
        self.num_hits = 0
        """Rows found so far."""

    def find(self, key: RowKey) -> Mapping[str, Tensor] | None:
        """The tensors kept under this key, by name, or None."""
        found = self._rows.get(key)
        self.num_hits += found is not None
        return found

    def keep(self, key: RowKey, answer: Mapping[str, Tensor]) -> None:
        """Keep the row if there is room for it; nobody else may hold these very tensors."""
        num_bytes = sum(one.numel() * one.element_size() for one in answer.values())
        if key not in self._rows and self.num_bytes + num_bytes <= self._most_bytes:
            self._rows[key] = {name: one.detach().to("cpu") for name, one in answer.items()}
            self.num_bytes += num_bytes
