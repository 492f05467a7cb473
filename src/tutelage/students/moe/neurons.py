"""The neurons of a dense feed-forward part, and which teacher layer a student layer learns from.

Neuron k of `down(act(gate(x)) * up(x))` is row k of the gate, row k of up and column k of down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.core.errors import ModelError
from tutelage.models import CausalLM, anatomy_of, layers_of
from tutelage.students.moe.settings import RowsOf


@final
@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """The weights of one layer's neurons, borrowed from the model."""

    gate: Float[Tensor, "F D"]
    up: Float[Tensor, "F D"]
    down: Float[Tensor, "D F"]

    @property
    def num_neurons(self) -> int:
        """F."""
        return self.gate.shape[0]


def feed_forwards(lm: CausalLM) -> list[FeedForward]:
    """Every layer's neurons, first layer to last.

    Raises:
        ModelError: the family's feed-forward part is of another kind.
    """
    return [
        FeedForward(
            gate=_weight(block, "gate_proj"),
            up=_weight(block, "up_proj"),
            down=_weight(block, "down_proj"),
        )
        for block in feed_forward_blocks(lm)
    ]


def feed_forward_blocks(lm: CausalLM) -> list[nn.Module]:
    """Every layer's feed-forward module, first layer to last.

    Raises:
        ModelError: the family's feed-forward part is of another kind.
    """
    anatomy = anatomy_of(lm.config)
    if not anatomy.gated:
        message = (
            f"The model's family is {lm.config.model_type!r}; its feed-forward part must be "
            "down(act(gate(x)) * up(x)) to be taken apart into neurons. Choose a dense Llama, "
            "Mistral, Qwen2 or Qwen3."
        )
        raise ModelError(message)
    return [layer.get_submodule(anatomy.mlp) for layer in layers_of(lm.model)]


def neuron_rows(
    neurons: FeedForward, rows: RowsOf = "gate_proj", *, normalised: bool = False
) -> Float[Tensor, "F X"]:
    """What neurons are compared by, in float32: X is the width, or twice that for `concat`.

    Args:
        normalised: every row of either matrix is divided by its length; a row of zeros stays.
    """
    chosen = {
        "gate_proj": (neurons.gate,),
        "up_proj": (neurons.up,),
        "concat": (neurons.gate, neurons.up),
    }[rows]
    parts = [weight.detach().float() for weight in chosen]
    if normalised:
        parts = [nn.functional.normalize(part, dim=1) for part in parts]
    return torch.cat(parts, dim=1)


def cut_neurons(
    neurons: FeedForward, kept: Int[Tensor, " kept"]
) -> tuple[Float[Tensor, "kept D"], Float[Tensor, "kept D"], Float[Tensor, "D kept"]]:
    """Copies of these neurons' rows of the gate, rows of up and columns of down."""
    return neurons.gate[kept], neurons.up[kept], neurons.down[:, kept]


def teacher_layer(student_layer: int, *, num_student: int, num_teacher: int) -> int:
    """The teacher layer that a student layer takes its clusters from: floor(l * L_T / L_S).

    Both count from 0. Student layers share a teacher layer where there are more of them.

    Source: PADD, arXiv:2606.10369, section 2.1.
    """
    return student_layer * num_teacher // num_student


def group_means(
    rows: Float[Tensor, "F X"], groups: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, "E X"]:
    """The mean row of each group: its centroid."""
    return torch.stack([rows[group].mean(dim=0) for group in groups])


def _weight(block: nn.Module, name: str) -> Tensor:
    linear = cast(nn.Linear, block.get_submodule(name))
    if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] - torch says never
        message = (
            f"The model's {name} has a bias; it must have none to be divided among experts. "
            "Choose another model."
        )
        raise ModelError(message)
    return linear.weight.detach()
