"""A teacher that answers with a forward pass, and remembers its answers while there is room."""

from typing import final

import torch
from typing_extensions import override

from tutelage.core.records import TokenBatch
from tutelage.core.targets import HiddenTarget
from tutelage.models.causal_lm import CausalLM
from tutelage.teachers.reading import Reader
from tutelage.teachers.teacher import Teacher


@final
class LiveTeacher(Teacher):
    """A frozen model, asked for its last hidden states; its head travels beside them, uncopied.

    With a memory, each row is read by itself and its hidden states are a function of the row
    alone; without one the whole batch is read at once. See `Reader`.

    Args:
        lm: the teacher. It is switched to evaluation mode, and its weights to no gradients.
        num_real: vocabulary entries that both models know; None: all of them.
        dtype: matrix products in this type (autocast); None: in the type of the weights, whatever
            autocast the caller is in.
        remember_bytes: how much memory may hold hidden states for rows that come again.
        reader: takes the place of the other three.
    """

    def __init__(
        self,
        lm: CausalLM,
        *,
        num_real: int | None = None,
        dtype: torch.dtype | None = None,
        remember_bytes: int = 0,
        reader: Reader | None = None,
    ) -> None:
        self._lm = lm.eval().requires_grad_(requires_grad=False)
        self._reader = reader or Reader(
            num_real=num_real, dtype=dtype, remember_bytes=remember_bytes
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._lm.device

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return int(self._lm.head.weight.shape[1])

    @property
    def num_scored_rows(self) -> int:
        """Rows that cost a forward pass."""
        return self._reader.num_scored_rows

    @property
    def num_remembered_rows(self) -> int:
        """Rows answered from memory so far."""
        return self._reader.memory.num_hits if self._reader.memory else 0

    @property
    def remembered_bytes(self) -> int:
        """Memory held by remembered rows."""
        return self._reader.memory.num_bytes if self._reader.memory else 0

    @override
    def score(self, batch: TokenBatch) -> HiddenTarget:
        return self._reader.read(self._lm.eval(), batch)
