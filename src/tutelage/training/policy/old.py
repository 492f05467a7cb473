"""What the student said of its completions before the first step on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.training.policy.routers import Tap


@final
@dataclass(frozen=True, kw_only=True)
class OldTokens:
    """N completion tokens under the student that drew them; nothing here has a gradient."""

    logp: Float[Tensor, " N"]
    """At the temperature they were drawn at."""
    probabilities: tuple[Float[Tensor, "N E"], ...] = ()
    """What each router said where the token was predicted; nothing for a student without."""
    chosen: tuple[Int[Tensor, "N K"], ...] = ()
    """The experts that it chose there."""
    routes: tuple[Int[Tensor, "L K"], ...] = ()
    """The experts of every token of the rows, prompts included, where they are to be replayed."""

    @classmethod
    def heard(
        cls,
        batch: TokenBatch,
        logp: Float[Tensor, " N"],
        tap: Tap | None,
        *,
        with_routes: bool = False,
    ) -> "OldTokens":
        """From a forward pass over the batch."""
        if tap is None:
            return cls(logp=logp.detach())
        at, seen = batch.student.predicts, tap.of(batch.student)
        return cls(
            logp=logp.detach(),
            probabilities=tuple(layer.detach()[at] for layer in seen.probabilities),
            chosen=tuple(layer.detach()[at] for layer in seen.chosen),
            routes=tuple(layer.detach() for layer in seen.chosen) if with_routes else (),
        )

    @classmethod
    def joined(cls, rows: Sequence["OldTokens"], device: torch.device) -> "OldTokens":
        """The tokens of several rows, one after the other."""

        def together(layers: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            return tuple(torch.cat(parts).to(device) for parts in zip(*layers, strict=True))

        return cls(
            logp=torch.cat([row.logp for row in rows]).to(device),
            probabilities=together([row.probabilities for row in rows]),
            chosen=together([row.chosen for row in rows]),
            routes=together([row.routes for row in rows]),
        )

    def of_row(self, batch: TokenBatch, row: int) -> "OldTokens":
        """One row of the batch that was read."""
        tokens = batch.row_of == row
        first, last = batch.student.row_starts[row : row + 2].tolist()
        return OldTokens(
            logp=self.logp[tokens],
            probabilities=tuple(layer[tokens] for layer in self.probabilities),
            chosen=tuple(layer[tokens] for layer in self.chosen),
            routes=tuple(layer[first:last] for layer in self.routes),
        )

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {
            "logp": self.logp,
            "probabilities": list(self.probabilities),
            "chosen": list(self.chosen),
            "routes": list(self.routes),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "OldTokens":
        """What `state` answered with, bit for bit."""
        return cls(
            logp=state["logp"],
            probabilities=tuple(state["probabilities"]),
            chosen=tuple(state["chosen"]),
            routes=tuple(state["routes"]),
        )
