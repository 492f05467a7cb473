# pyright: basic
# A door to transformers' routers, whose types are partial.
"""The host's routers with a bias, with orders to obey and with listeners.

    probabilities = softmax(W h + b)      float32, over all E experts
    chosen        = the K largest
    gates         = their probabilities, divided by their sum where the host does so

With `takes_part_in="choice"` the bias joins the probabilities in the choice and nowhere else, as
loss-free balancing wants it. Where b is 0 it is the host's router, bit for bit.
"""

from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter
from typing_extensions import override

from tutelage.core.errors import NumericsError
from tutelage.models.routers.control import (
    Decision,
    Replay,
    Route,
    RouterControl,
    UniformDense,
    UniformSample,
)

BIAS = "padd_bias"
"""The buffer's name, in the model's state and in saved files."""
TakesPartIn: TypeAlias = Literal["gates", "choice"]
"""What a bias changes: the probabilities that both choice and gates come from, or the choice."""


class BiasedRouter(nn.Module):
    """What a host's router class becomes; see `install_biased_routers`."""

    padd_bias: Float[Tensor, " E"]
    control: RouterControl
    layer: int
    """Among the layers with experts, from 0."""
    takes_part_in: TakesPartIn
    divides: bool
    """Whether the host divides the gates by their sum."""
    rounds: bool
    """Whether the host gives gates in the dtype of the scores."""
    weight: nn.Parameter
    num_experts: int
    hidden_dim: int
    top_k: int

    @override
    def forward(
        self, hidden_states: Float[Tensor, "*at D"]
    ) -> tuple[Float[Tensor, "L E"], Float[Tensor, "L K"], Int[Tensor, "L K"]]:
        """Scores, gates and experts, as the host's router gives them."""
        scores = linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        biased = scores.float()
        if self.takes_part_in == "gates":
            biased = biased + self.padd_bias
        self._refuse_overflow(scores)
        probabilities = biased.softmax(dim=-1)
        earlier = self.control.earlier(self.layer)
        decision = earlier or self._decide(probabilities)
        if earlier is None:
            self.control.decided(self.layer, decision, probabilities)
        gates = self._gates(probabilities, decision)
        return (
            biased.to(scores.dtype),
            gates.to(scores.dtype) if self.rounds else gates,
            (decision.chosen),
        )

    def _decide(self, probabilities: Float[Tensor, "L E"]) -> Decision:
        order, num_tokens = self.control.order, probabilities.shape[0]
        match order:
            case Route():
                ranked = probabilities.detach()
                if self.takes_part_in == "choice":
                    ranked = ranked + self.padd_bias
                chosen = ranked.topk(self.top_k, dim=-1).indices
            case UniformSample(generators=generators):
                drawn = torch.rand(num_tokens, self.num_experts, generator=generators[self.layer])
                chosen = drawn.topk(self.top_k, dim=-1).indices.to(probabilities.device)
            case UniformDense():
                every = torch.arange(self.num_experts, device=probabilities.device)
                chosen = every.expand(num_tokens, -1)
            case Replay(chosen=all_chosen):
                chosen = all_chosen[self.layer]
                if chosen.shape[0] != num_tokens:
                    message = f"{chosen.shape[0]} tokens are replayed where {num_tokens} are read"
                    raise ValueError(message)
        return Decision(order, chosen)

    def _gates(
        self, probabilities: Float[Tensor, "L E"], decision: Decision
    ) -> Float[Tensor, "L K"]:
        if isinstance(decision.order, UniformSample | UniformDense):
            size = decision.chosen.shape
            return probabilities.new_full(size, 1 / size[-1])
        gates = probabilities.gather(-1, decision.chosen)
        return gates / gates.sum(dim=-1, keepdim=True) if self.divides else gates

    def _refuse_overflow(self, scores: Float[Tensor, "L E"]) -> None:
        # Only float16 ends where a router's scores may lie; elsewhere the loss tells soon enough.
        if scores.dtype == torch.float16 and not bool(scores.isfinite().all()):
            message = (
                f"The router of MoE layer {self.layer} gives scores that are not finite in "
                "float16; they must be finite. Load the model in bfloat16 or float32."
            )
            raise NumericsError(message)

    @override
    def _apply(self, fn, recurse=True):  # noqa: ANN001, ANN202 - torch's own signature
        bias = self.padd_bias
        super()._apply(fn, recurse)
        # Whatever the model is cast to, the bias moves in steps that only float32 can hold.
        self.padd_bias = bias.to(self.padd_bias.device)
        return self


@final
class MixtralRouter(BiasedRouter, MixtralTopKRouter):
    """Mixtral's: divides always, and keeps its gates in float32."""


@final
class Qwen2MoeRouter(BiasedRouter, Qwen2MoeTopKRouter):
    """Qwen2-MoE's."""


@final
class Qwen3MoeRouter(BiasedRouter, Qwen3MoeTopKRouter):
    """Qwen3-MoE's."""


HOSTS: dict[type[nn.Module], type[BiasedRouter]] = {
    MixtralTopKRouter: MixtralRouter,
    Qwen2MoeTopKRouter: Qwen2MoeRouter,
    Qwen3MoeTopKRouter: Qwen3MoeRouter,
}
