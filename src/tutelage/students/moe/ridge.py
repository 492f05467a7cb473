"""Linear maps by least squares, from sums over tokens that do not grow with them."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM
from tutelage.students.moe.activations import inputs_of, run_through
from tutelage.students.moe.neurons import feed_forward_blocks, feed_forwards
from tutelage.students.moe.upcycle import Groups


@final
class RidgeFit:
    """argmin over R of |X R - Y|^2 + ridge * mean square of X * |R|^2, rows of X and Y streamed.

    The weight is relative, so that neither the number of rows nor their size matters to it.
    """

    def __init__(self) -> None:
        self._gram: Float[Tensor, "D D"] | None = None
        self._cross: Float[Tensor, "D Y"] | None = None
        self._square = 0.0

    def add(self, inputs: Float[Tensor, "L D"], outputs: Float[Tensor, "L Y"]) -> None:
        """Some rows more, in float64 on the CPU."""
        x, y = inputs.detach().double().cpu(), outputs.detach().double().cpu()
        gram, cross = x.T @ x, x.T @ y
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross
        self._square += float(y.square().sum())

    def solve(self, ridge: float) -> Float[Tensor, "D Y"]:
        """The map, in float64."""
        assert self._gram is not None  # noqa: S101 - rows come first
        assert self._cross is not None  # noqa: S101
        weight = ridge * float(self._gram.diagonal().mean())
        eye = torch.eye(self._gram.shape[0], dtype=torch.float64)
        return torch.linalg.solve(self._gram + max(weight, 1e-12) * eye, self._cross)

    def explained(self, found: Float[Tensor, "D Y"]) -> float:
        """1 - |X found - Y|^2 / |Y|^2 over the rows so far: 1 where the map loses nothing."""
        assert self._gram is not None  # noqa: S101 - rows come first
        assert self._cross is not None  # noqa: S101
        missed = (
            self._square - 2 * (found * self._cross).sum() + (found * (self._gram @ found)).sum()
        )
        return 1 - float(missed) / max(self._square, 1e-300)


def fitted_rows(
    dense: CausalLM,
    groups: Sequence[Groups],
    batches: Sequence[TokenBatch],
    *,
    ridge: float,
) -> list[Float[Tensor, "E D"]]:
    """For each layer, rows whose logits follow how much each expert would write.

    Raises:
        DataError: there is no token to look at.
    """
    layers = feed_forwards(dense)
    lengths = [neurons.down.float().norm(dim=0) for neurons in layers]
    fits = [RidgeFit() for _ in layers]
    with inputs_of(feed_forward_blocks(dense)) as inputs:

        def see(layer: int, activation: Float[Tensor, "L F"]) -> None:
            written = activation.float().abs() * lengths[layer]
            mass = torch.stack(
                [written[:, members].sum(dim=1) for members in groups[layer].experts], dim=1
            )
            # What is the same for all experts decides nothing.
            fits[layer].add(inputs.pop(layer), mass - mass.mean(dim=1, keepdim=True))

        run_through(dense, batches, "glu", see)
    return [fit.solve(ridge).T.float() for fit in fits]
