"""What a dense model's neurons do on calibration rows: sums that are added up row by row.

Rows go through the model end to end, whatever its own layout, so every token counts and no
padding does. Memory does not grow with the rows, but for `strongest_marks`, which is bounded.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tutelage.core.errors import DataError
from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM
from tutelage.students.moe.neurons import feed_forward_blocks

Activation: TypeAlias = Literal["glu", "pre", "act"]
"""Of a neuron: act(gate) * up, which goes into down; or gate before or behind its non-linearity."""

_See: TypeAlias = Callable[[int, Tensor], None]


def mean_activations(
    lm: CausalLM,
    batches: Sequence[TokenBatch],
    *,
    kind: Activation = "glu",
    absolute: bool = False,
) -> list[Float[Tensor, " F"]]:
    """Each neuron's mean over all tokens of all rows, prompt and completion, for each layer.

    Added up in float64; answered in float64.

    Args:
        absolute: of the activation's size, without its sign.

    Raises:
        DataError: there is no token to look at.
    """
    sums: list[Tensor | None] = [None] * len(feed_forward_blocks(lm))

    def add(layer: int, activation: Float[Tensor, "L F"]) -> None:
        values = activation.abs() if absolute else activation
        total = values.double().sum(dim=0).cpu()
        before = sums[layer]
        sums[layer] = total if before is None else before + total

    num_tokens = run_through(lm, batches, kind, add)
    return [cast(Tensor, total) / num_tokens for total in sums]


def strongest_marks(
    lm: CausalLM, batches: Sequence[TokenBatch], *, marks_per_token: int, max_tokens: int
) -> list[Bool[Tensor, "F L"]]:
    """Whether each neuron is among a token's strongest ones, for each layer.

    Args:
        marks_per_token: how many are: those with the largest activation, whatever its sign.
        max_tokens: the first so many tokens are looked at, so memory is bounded.

    Raises:
        DataError: there is no token to look at.
    """
    kept: list[list[Tensor]] = [[] for _ in feed_forward_blocks(lm)]

    def mark(layer: int, activation: Float[Tensor, "L F"]) -> None:
        room = max_tokens - sum(len(part) for part in kept[layer])
        strength = activation[:room].abs()
        if len(strength):
            largest = strength.topk(min(marks_per_token, strength.shape[1]), dim=1).indices
            marked = torch.zeros(strength.shape, dtype=torch.bool, device=strength.device)
            kept[layer].append(marked.scatter_(1, largest, value=True).cpu())

    chosen: list[TokenBatch] = []
    for batch in batches:
        if sum(each.num_tokens for each in chosen) >= max_tokens:
            break
        chosen.append(batch)
    run_through(lm, chosen, "glu", mark)
    return [torch.cat(parts).T.contiguous() for parts in kept]


def target_shares(
    activation: Float[Tensor, " F"], groups: Sequence[Int[Tensor, " _"]], *, xi: float = 0.1
) -> Float[Tensor, " E"]:
    """How large a share of the work each expert should do: softmax of its neurons' mean over xi.

    Near one-hot for a small xi, even for a large one.

    Source: PADD, arXiv:2606.10369, equation 2.
    """
    mean = torch.stack([activation[group].mean() for group in groups])
    return torch.softmax(mean / xi, dim=0)


def share_divergence(
    student: Float[Tensor, "*at E"], target: Float[Tensor, "*at E"]
) -> Float[Tensor, "*at"]:
    """KL(student's shares || target shares), in nats: 0 where they are the same.

    Source: PADD, arXiv:2606.10369, equation 3 (L_init).
    """
    # xlogy: an expert that does nothing adds 0.
    return (torch.special.xlogy(student, student) - student * target.log()).sum(dim=-1)


@torch.no_grad()
def run_through(lm: CausalLM, batches: Sequence[TokenBatch], kind: Activation, see: _See) -> int:
    """Run the rows through the model, showing every layer's activations; answers the tokens.

    Raises:
        DataError: there is no token to look at.
    """
    num_tokens = sum(batch.num_tokens for batch in batches)
    if not num_tokens:
        message = (
            "The calibration rows are empty; there must be at least one, to see what neurons do. "
            "Give some rows."
        )
        raise DataError(message)
    was_training = lm.training
    packed = CausalLM(lm.model, layout="packed").eval()
    try:
        with _seen(feed_forward_blocks(lm), kind, see):
            for batch in batches:
                packed.hidden(batch.student)
    finally:
        lm.train(was_training)
    return num_tokens


@contextmanager
def inputs_of(blocks: Sequence[nn.Module]) -> Generator[dict[int, Float[Tensor, "L D"]]]:
    """Inside, what each block was last given, by its number."""
    seen: dict[int, Tensor] = {}

    def keep(at: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[at] = args[0].flatten(0, -2)

        return hook

    handles = [block.register_forward_pre_hook(keep(at)) for at, block in enumerate(blocks)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _seen(blocks: Sequence[nn.Module], kind: Activation, see: _See) -> Generator[None]:
    def of_input(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            see(layer, args[0].flatten(0, -2))

        return hook

    def of_output(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            see(layer, output.flatten(0, -2))

        return hook

    handles = [
        block.get_submodule("down_proj").register_forward_pre_hook(of_input(at))
        if kind == "glu"
        else block.get_submodule("gate_proj" if kind == "pre" else "act_fn").register_forward_hook(
            of_output(at)
        )
        for at, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
