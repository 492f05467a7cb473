"""What the routers did in one forward pass, for the tokens of a view."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.core.errors import ModelError
from tutelage.core.records import View
from tutelage.models.routers.install import install_biased_routers


@final
@dataclass(frozen=True, kw_only=True)
class Routed:
    """The routing of L tokens, layer by layer from first to last; dense layers have none."""

    probabilities: tuple[Float[Tensor, "L E"], ...]
    """Softmax over all experts, in float32, with the bias where it takes part."""
    chosen: tuple[Int[Tensor, "L K"], ...]


@final
class RouterTap:
    """Hears the routers over one forward pass.

        with RouterTap(lm) as tap:
            hidden = lm.hidden(view)
        routed = tap.of(view)

    Installs biased routers where there are none, which changes no number. What gradient
    checkpointing computes again is not heard again.

    Args:
        model: a `CausalLM`, or any module around a transformers model.
        with_gradient: let gradients flow through the probabilities; otherwise they are detached.

    Raises:
        ModelError: the model is dense, or its router is of a class we do not know.
    """

    def __init__(self, model: nn.Module, *, with_gradient: bool = False) -> None:
        self._control = install_biased_routers(model)
        self._with_gradient = with_gradient
        self._heard: dict[int, tuple[Tensor, Tensor]] = {}
        self._hearing: AbstractContextManager[None] | None = None

    def __enter__(self) -> "RouterTap":
        self._heard.clear()
        self._hearing = self._control.heard_by(self)
        self._hearing.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._hearing is not None:
            self._hearing.__exit__(kind, error, trace)

    def routed(
        self, layer: int, probabilities: Float[Tensor, "L E"], chosen: Int[Tensor, "L K"]
    ) -> None:
        """A router has chosen; the routers call this.

        Raises:
            ModelError: it has done so before, inside the same `with`.
        """
        if layer in self._heard:
            message = (
                f"A RouterTap heard MoE layer {layer} twice; it must be held over one forward "
                "pass, and checkpointed layers need `checkpointing_options`. Use one tap a pass."
            )
            raise ModelError(message)
        kept = probabilities if self._with_gradient else probabilities.detach()
        self._heard[layer] = kept, chosen

    def of(self, view: View) -> Routed:
        """What was heard of the tokens of this view, in their order and without padding.

        Raises:
            ModelError: nothing was heard, or it was of other tokens.
        """
        if len(self._heard) != self._control.num_layers:
            message = (
                f"A RouterTap heard {len(self._heard)} of {self._control.num_layers} MoE layers; "
                "it must be asked after one forward pass. Call the model inside its `with`."
            )
            raise ModelError(message)
        heard = [self._heard[layer] for layer in range(self._control.num_layers)]
        kept = _kept(view, num_heard=heard[0][0].shape[0])
        if kept is None:
            return Routed(
                probabilities=tuple(p for p, _ in heard), chosen=tuple(c for _, c in heard)
            )
        return Routed(
            probabilities=tuple(p[kept] for p, _ in heard),
            chosen=tuple(c[kept] for _, c in heard),
        )


def _kept(view: View, *, num_heard: int) -> Int[Tensor, " L"] | None:
    """Where the view's tokens stand among those that were heard; None where they are the same."""
    if num_heard == view.input_ids.shape[0]:
        return None
    starts: list[int] = view.row_starts.tolist()
    lengths = [end - start for start, end in pairwise(starts)]
    if num_heard != len(lengths) * max(lengths, default=0):
        message = (
            f"A RouterTap heard {num_heard} tokens; they must be the {starts[-1]} of the view it "
            "is asked about, padded or not. Ask about the view that was read."
        )
        raise ModelError(message)
    columns = [torch.arange(n) + row * max(lengths) for row, n in enumerate(lengths)]
    return torch.cat(columns).to(view.input_ids.device)
