"""Where scores come from: one side's logits, made tile by tile and read a few rows at a time."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage.core.targets import (
    Head,
    HiddenTarget,
    LogitsTarget,
    PartialTarget,
    SameVocabularyTarget,
    SeveralTarget,
)
from tutelage.objectives.fused.options import LogitsMode
from tutelage.objectives.fused.scratch import Scratch

ExactMode = Literal["native", "split", "fp32"]

_UPCAST_ENTRIES = 2048


def real_entries(side: Head | LogitsTarget) -> int:
    """How many leading vocabulary entries of one side mean something."""
    entries = side.weight.shape[0] if isinstance(side, Head) else side.logits.shape[-1]
    return entries if side.num_real is None else min(side.num_real, entries)


def labels_only(labels: Int[Tensor, " N"], head: Head) -> LogitsTarget:
    """A target for objectives that look at no teacher: the tokens themselves."""
    # No objective that reads labels alone looks at these scores: one zero, seen V times over.
    zero = labels.new_zeros((1, 1), dtype=torch.float32)
    return LogitsTarget(logits=zero.expand(len(labels), real_entries(head)), labels=labels)


def target_entries(target: SameVocabularyTarget, *, student: int) -> int:
    """The same for a teacher's answer; one that does not say has as many as the student."""
    if isinstance(target, PartialTarget):
        return target.num_real or student
    if isinstance(target, SeveralTarget):
        return min(real_entries(one.head) for one in target.members)
    return real_entries(target.head if isinstance(target, HiddenTarget) else target)


def exact_mode(mode: LogitsMode, dtype: torch.dtype, device: torch.device) -> ExactMode:
    """What `auto` means here; full-precision matmuls have nothing to choose."""
    if dtype not in (torch.bfloat16, torch.float16):
        return "native"
    if mode != "auto":
        return mode
    if device.type != "cpu" or dtype != torch.bfloat16:
        return "fp32"
    # Torch has no public way to ask this.
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return "split" if fast else "fp32"


class Scores(ABC):
    """One side's scores: `load` a tile of tokens, then read `rows` of it."""

    @abstractmethod
    def load(self, start: int, stop: int) -> None:
        """Compute the scores of these tokens."""

    @abstractmethod
    def rows(self, start: int, stop: int, scratch: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """Full-precision scores of some rows of the loaded tile, counted from its first.

        They lie in `scratch`, or in the tile itself where that has the same dtype: either way
        the caller may overwrite them, and reads them once.
        """


@final
@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where one side's buffers come from."""

    scratch: Scratch
    side: str

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """One of this side's own buffers, on the device of `like`."""
        return self.scratch.take(f"{self.side} {name}", shape, dtype=dtype, device=like.device)


@final
class LinearScores(Scores):
    """softcap(scale * (hidden @ weight.T + bias)) over the first V entries of a head."""

    def __init__(
        self,
        hidden: Float[Tensor, "N D"],
        head: Head,
        *,
        num_entries: int,
        row_dtype: torch.dtype,
        mode: ExactMode,
        memory: Memory,
    ) -> None:
        self.hidden = hidden
        self._memory = memory
        self.weight = self._cast(head.weight.detach()[:num_entries])
        self.bias = None if head.bias is None else head.bias.detach()[:num_entries].to(row_dtype)
        self.scale = head.scale
        self.softcap = head.softcap
        self.mode: ExactMode = mode
        self.tile_dtype = row_dtype if mode == "fp32" else hidden.dtype
        self.row_dtype = row_dtype
        self.tile = hidden.new_empty(0)
        self.residual: Tensor | None = None

    @property
    def bytes_per_token(self) -> int:
        """What one token takes in the tile buffers."""
        size = torch.empty(0, dtype=self.tile_dtype).element_size()
        return size * self.weight.shape[0] * (2 if self.mode == "split" else 1)

    def allocate(self, tile_tokens: int) -> None:
        """Make the buffers that every tile reuses."""
        shape = (tile_tokens, self.weight.shape[0])
        take = self._memory.take
        self.tile = take("tile", shape, self.hidden, self.tile_dtype)
        split = self.mode == "split"
        self.residual = take("residual", shape, self.hidden, self.tile_dtype) if split else None

    def _cast(self, weight: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        if weight.dtype == self.hidden.dtype:
            return weight
        shape = (weight.shape[0], weight.shape[1])
        return self._memory.take("weight", shape, self.hidden, self.hidden.dtype).copy_(weight)

    @override
    def load(self, start: int, stop: int) -> None:
        hidden, out = self.hidden[start:stop], self.tile[: stop - start]
        if out.dtype != hidden.dtype:
            self._load_upcast(hidden, out)
            return
        torch.mm(hidden, self.weight.T, out=out)
        if self.residual is not None:
            # The rounding error of the line above, by the same kernel: its fp32 accumulator
            # minus what was written.
            residual = self.residual[: stop - start]
            torch.addmm(out, hidden, self.weight.T, beta=-1, out=residual)

    def _load_upcast(self, hidden: Float[Tensor, "T D"], out: Float[Tensor, "T V"]) -> None:
        if hidden.is_cuda:
            torch.mm(hidden, self.weight.T, out_dtype=out.dtype, out=out)
            return
        wide = hidden.to(out.dtype)
        for first in range(0, out.shape[1], _UPCAST_ENTRIES):
            part = slice(first, first + _UPCAST_ENTRIES)
            torch.mm(wide, self.weight[part].to(out.dtype).T, out=out[:, part])

    @override
    def rows(self, start: int, stop: int, scratch: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        block = self.tile[start:stop]
        if block.dtype != self.row_dtype:
            block = scratch.copy_(block)
            if self.residual is not None:
                block.add_(self.residual[start:stop])
        if self.bias is not None:
            block.add_(self.bias)
        if self.scale != 1:
            block.mul_(self.scale)
        if self.softcap is not None:
            block.div_(self.softcap).tanh_().mul_(self.softcap)
        return block


@final
class GivenScores(Scores):
    """Scores that somebody else computed: nothing to load but a copy of the rows."""

    def __init__(self, logits: Float[Tensor, "N V"], *, num_entries: int) -> None:
        self.logits = logits.detach()[:, :num_entries]
        self._first = 0

    @override
    def load(self, start: int, stop: int) -> None:
        self._first = start

    @override
    def rows(self, start: int, stop: int, scratch: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        return scratch.copy_(self.logits[self._first + start : self._first + stop])
