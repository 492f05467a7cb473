# pyright: basic
# A door to transformers' experts, whose types are partial.
"""The experts of one layer: tokens sorted by expert, then one plain matmul an expert.

On a CPU it is faster than transformers' grouped, batched and eager forms (see
`docs/moe_routing.md`), under autocast as well, and it is the only one of them besides eager that
computes in double precision. On other devices transformers' grouped matmul does the work. Asked
to, it also says how active each expert was.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from tutelage.models.routers.control import RouterControl

SORTED_EXPERTS = "tutelage_experts"
"""The name under which transformers finds these experts."""


def register_experts() -> None:
    """Make the experts known to transformers; doing it twice changes nothing."""
    ALL_EXPERTS_FUNCTIONS.register(SORTED_EXPERTS, sorted_experts)


def sorted_experts(
    module: Any,  # noqa: ANN401 - what transformers' experts have in common
    hidden_states: Float[Tensor, "L D"],
    top_k_index: Int[Tensor, "L K"],
    top_k_weights: Float[Tensor, "L K"],
) -> Float[Tensor, "L D"]:
    """The sum over the K experts of a token of gate * down(act(gate_proj x) * up_proj x)."""
    control: RouterControl | None = getattr(module, "control", None)
    heard = control is not None and control.experts_are_heard
    on_cpu = hidden_states.device.type == "cpu"
    if not (heard or on_cpu or hidden_states.dtype == torch.float64):
        return grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    flat = top_k_index.flatten()
    order = flat.argsort(stable=True)
    token = order // top_k_index.shape[-1]
    counts = torch.bincount(flat, minlength=module.num_experts)
    # Cast and unbound once: the gradient of one expert's slice would be as large as the whole.
    enter, leave = (_cast(w).unbind() for w in (module.gate_up_proj, module.down_proj))
    outputs: list[Tensor] = []
    means: list[Tensor] = []
    for expert, rows in enumerate(_cast(hidden_states)[token].split(counts.tolist())):
        if not rows.shape[0]:
            means.append(rows.new_zeros((), dtype=torch.float32))
            continue
        inner = module._apply_gate(linear(rows, enter[expert]))  # noqa: SLF001
        outputs.append(linear(inner, leave[expert]))
        if heard:
            means.append(inner.float().mean())
    if control is not None and heard:
        control.acted(module.layer, torch.stack(means), counts)
    if not outputs:
        return torch.zeros_like(hidden_states)
    weighed = torch.cat(outputs) * top_k_weights.flatten()[order][:, None]
    sums = torch.zeros_like(hidden_states)
    return sums.index_add(0, token, weighed.to(hidden_states.dtype))


def _cast(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What autocast would make of it in each of the matmuls."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
