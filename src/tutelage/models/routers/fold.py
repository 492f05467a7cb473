"""Putting a router's bias into its weights, as well as that can be done, for stock classes."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.core.errors import ModelError
from tutelage.core.records import View
from tutelage.models.routers.install import routers_of
from tutelage.models.routers.router import BiasedRouter

_RIDGE = 1e-6
"""Of the mean square of the hidden states: keeps the solution finite where tokens are few."""
_Model = TypeVar("_Model", bound=nn.Module)


@final
@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """What is left of the difference, on tokens that the offsets were not fitted to."""

    distance: tuple[float, ...]
    """For each MoE layer, the mean distance between the probabilities with the bias and those
    with the offset: 0 is a perfect fold, the square root of 2 the worst there is."""
    without: tuple[float, ...]
    """The same where the bias is simply left out."""
    changed: tuple[float, ...]
    """Share of tokens that are sent to other experts."""
    num_tokens: int
    """That this was measured on."""

    def __str__(self) -> str:
        """One line for people."""
        mean, left_out, changed = (
            sum(x) / len(x) for x in (self.distance, self.without, self.changed)
        )
        return (
            f"The router biases were folded into the routers' weights: on {self.num_tokens} tokens "
            f"the mean distance between the two routings is {mean:.4f} (left out: "
            f"{left_out:.4f}), and {changed:.1%} of the tokens have other experts."
        )


@torch.no_grad()
def fold_biases(model: _Model, views: Sequence[View]) -> tuple[_Model, FoldReport]:
    """A copy whose biases are 0, their work done by an offset of each router's rows.

    Finds u with u . h = 1 for the hidden states h that reach a router, by least squares over
    every other token, and adds b_j u to row j. Hidden states behind a norm mostly have such a
    direction; how well is measured on the tokens in between.

    Args:
        model: reads a view when it is called, as `CausalLM` does.
        views: calibration rows.

    Raises:
        ModelError: there is no router of ours, no token, or a bias that takes part in the choice
            alone, which no weight can imitate.
    """
    _check(model, views)
    copy = deepcopy(model).eval()
    kept = _router_inputs(copy, views)
    distances: list[float] = []
    without: list[float] = []
    changed: list[float] = []
    for router, hidden in zip(routers_of(copy), kept, strict=True):
        fitted, held_out = hidden[::2], hidden[1::2] if len(hidden) > 1 else hidden
        scores = held_out @ router.weight.double().T
        wanted = (scores + router.padd_bias).softmax(dim=-1)
        without.append(_distance(scores.softmax(dim=-1), wanted))
        _fold(router, fitted)
        got = (held_out @ router.weight.double().T).softmax(dim=-1)
        distances.append(_distance(got, wanted))
        ours, theirs = (p.topk(router.top_k).indices.sort().values for p in (got, wanted))
        changed.append(float((ours != theirs).any(dim=-1).double().mean()))
    report = FoldReport(
        distance=tuple(distances),
        without=tuple(without),
        changed=tuple(changed),
        num_tokens=len(kept[0][1::2]) or 1,
    )
    return copy, report


def _fold(router: BiasedRouter, hidden: Float[Tensor, "L D"]) -> None:
    # What all experts share is nothing to a softmax, so only the rest has to be imitated.
    offset = (router.padd_bias - router.padd_bias.mean()).double()
    gram = hidden.T @ hidden
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    direction = torch.linalg.solve(gram + ridge.to(gram.device), hidden.sum(dim=0))
    moved = router.weight.double() + offset[:, None] * direction
    # A new parameter, for the copy may share the old one with the model it was made from.
    router.weight = nn.Parameter(moved.to(router.weight.dtype), requires_grad=False)
    router.padd_bias.zero_()


def _distance(one: Float[Tensor, "L E"], other: Float[Tensor, "L E"]) -> float:
    return float(torch.linalg.vector_norm(one - other, dim=-1).mean())


def _router_inputs(model: nn.Module, views: Sequence[View]) -> list[Float[Tensor, "L D"]]:
    routers = routers_of(model)
    heard: list[list[Tensor]] = [[] for _ in routers]

    def listen(router: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(router, BiasedRouter)  # noqa: S101  hooks are not typed
        heard[router.layer].append(given[0].reshape(-1, router.hidden_dim).double())

    hooks = [router.register_forward_pre_hook(listen) for router in routers]
    try:
        for view in views:
            model(view)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(pieces) for pieces in heard]


def _check(model: nn.Module, views: Sequence[View]) -> None:
    routers = routers_of(model)
    if not routers or routers[0].takes_part_in != "gates":
        got = "none" if not routers else "one that takes part in the choice alone"
        message = (
            f"The router bias to fold is {got}; it must be one that takes part in the gates. "
            "Save it with the model's code instead."
        )
        raise ModelError(message)
    if not any(view.input_ids.numel() for view in views):
        message = (
            "The calibration rows for folding are empty; there must be at least one. Give some."
        )
        raise ModelError(message)
