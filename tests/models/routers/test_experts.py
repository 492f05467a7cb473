import pytest
import torch
from torch import Tensor

from tests.tiny_moe import FAMILIES, NUM_EXPERTS, ragged_view, tiny_moe, tiny_moe_model
from tutelage.models.routers import UniformSample, checkpointing_options, install_biased_routers
from tutelage.models.routers.experts import SORTED_EXPERTS, register_experts


class Heard:
    """Keeps what experts say of themselves."""

    def __init__(self) -> None:
        self.means: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}
        self.times = 0

    def acted(self, layer: int, means: Tensor, heard: Tensor) -> None:
        self.means[layer], self.counts[layer] = means, heard
        self.times += 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorted_experts_are_the_eager_ones_with_their_gradients(
    family: str, dtype: torch.dtype
) -> None:
    register_experts()
    found = []
    for how in ("eager", SORTED_EXPERTS):
        model = tiny_moe_model(family).to(dtype)
        model.set_experts_implementation(how)
        ids = ragged_view().input_ids[None]
        logits = model(ids).logits
        logits.square().mean().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_sorted_experts_under_autocast_are_as_exact_as_the_eager_ones(family: str) -> None:
    register_experts()
    found = {}
    for how, half in (("eager", False), ("eager", True), (SORTED_EXPERTS, True)):
        model = tiny_moe_model(family)
        model.set_experts_implementation(how)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            found[how, half] = model(ragged_view().input_ids[None]).logits.float()
    exact = found["eager", False]
    eager, ours = (
        (found[how, True] - exact).square().mean().sqrt() for how in ("eager", SORTED_EXPERTS)
    )
    assert float(ours) <= 1.3 * float(eager)


def test_experts_say_how_active_they_were_on_what_they_were_given() -> None:
    lm, heard = tiny_moe(), Heard()
    control = install_biased_routers(lm)
    block = lm.model.model.layers[1].mlp
    hidden = torch.randn(12, 32, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([[0, 3]] * 5 + [[0, 1]] * 7)
    with control.experts_heard_by(heard):
        block.experts(hidden, chosen, torch.full((12, 2), 0.5))
    assert heard.counts[1].tolist() == [12, 7, 0, 5]
    for expert in (0, 1, 3):
        rows = hidden[(chosen == expert).any(dim=-1)]
        gate, up = (rows @ block.experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        expected = (torch.nn.functional.silu(gate) * up).mean()
        torch.testing.assert_close(heard.means[1][expert], expected)
    assert heard.means[1][2].item() == 0.0


def test_activity_has_a_gradient_and_is_not_heard_again_when_recomputed() -> None:
    gradients = []
    for checkpointed in (False, True):
        lm, heard = tiny_moe().train(), Heard()
        control = install_biased_routers(lm)
        if checkpointed:
            lm.model.activation_checkpointing_enable(checkpointing_options(lm))
        generators = [torch.Generator().manual_seed(at) for at in range(2)]
        with control.experts_heard_by(heard):
            with control.ordered(UniformSample(generators)):
                hidden = lm.hidden(ragged_view())
            term = torch.stack([heard.means[layer].square().sum() for layer in range(2)]).sum()
            (term + 0 * hidden.sum()).backward()
        assert heard.times == 2
        experts = lm.model.model.layers[1].mlp.experts
        assert experts.gate_up_proj.grad.flatten(1).any(dim=-1).sum() == NUM_EXPERTS
        gradients.append(experts.gate_up_proj.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
