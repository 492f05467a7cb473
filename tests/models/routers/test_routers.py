from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from tests.tiny_models import tiny_llama
from tests.tiny_moe import FAMILIES, NUM_CHOSEN, NUM_EXPERTS, ragged_view, some_biases, tiny_moe
from tutelage.core.errors import ModelError, NumericsError
from tutelage.models import CausalLM
from tutelage.models.routers import (
    Replay,
    RouterTap,
    UniformDense,
    UniformSample,
    biases_of,
    checkpointing_options,
    install_biased_routers,
    routers_of,
    set_biases,
)

every_family = pytest.mark.parametrize("family", FAMILIES)


def generators(seed: int = 0, num_layers: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + at) for at in range(num_layers)]


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@every_family
@pytest.mark.parametrize("half", [False, True])
def test_a_bias_of_nothing_is_the_stock_router_to_the_bit(family: str, *, half: bool) -> None:
    lm, view = tiny_moe(family), ragged_view()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        before = lm.hidden(view)
        install_biased_routers(lm)
        after = lm.hidden(view)
    assert after.equal(before)


@every_family
def test_the_modules_stay_what_they_were_and_their_hooks_hold(family: str) -> None:
    lm = tiny_moe(family)
    ids = ragged_view().input_ids[None]
    first = lm.model(ids, output_router_logits=True)
    weights = list(lm.parameters())
    install_biased_routers(lm)
    set_biases(lm, some_biases())
    again = lm.model(ids, output_router_logits=True, labels=ids)
    assert all(a is b for a, b in zip(weights, lm.parameters(), strict=True))
    assert len(again.router_logits) == len(first.router_logits) == 2
    torch.testing.assert_close(again.router_logits[0], first.router_logits[0] + some_biases()[0])
    assert again.aux_loss.isfinite()


def naive_router(hidden: Tensor, router: nn.Module, bias: Tensor, *, divide: bool) -> Tensor:
    """A table of gates over all experts, by the words of the specification."""
    probabilities = (hidden @ router.weight.T + bias).softmax(dim=-1)
    gates = torch.zeros_like(probabilities)
    for row, p in enumerate(probabilities.tolist()):
        best = sorted(range(len(p)), key=lambda j: -p[j])[:NUM_CHOSEN]
        total = sum(p[j] for j in best) if divide else 1.0
        for j in best:
            gates[row, j] = p[j] / total
    return gates


@pytest.mark.parametrize(
    ("family", "divide"), [("mixtral", True), ("qwen3_moe", True), ("qwen3_moe", False)]
)
def test_the_bias_is_added_before_the_softmax_and_changes_gates_and_choice(
    family: str, *, divide: bool
) -> None:
    extra = {} if family == "mixtral" else {"norm_topk_prob": divide}
    lm = tiny_moe(family, **extra)
    install_biased_routers(lm)
    set_biases(lm, some_biases())
    router = routers_of(lm)[0]
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    _, gates, chosen = router(hidden)
    table = torch.zeros(9, NUM_EXPERTS).scatter(1, chosen, gates)
    expected = naive_router(hidden, router, some_biases()[0], divide=divide)
    torch.testing.assert_close(table, expected)


@every_family
def test_a_constant_on_all_biases_changes_nothing_and_a_huge_one_decides(family: str) -> None:
    lm, view = tiny_moe(family), ragged_view()
    before = lm.hidden(view)
    install_biased_routers(lm)
    set_biases(lm, torch.full((2, NUM_EXPERTS), 3.0))
    torch.testing.assert_close(lm.hidden(view), before, atol=1e-4, rtol=1e-4)
    set_biases(lm, torch.tensor([[0.0, 0.0, 50.0, 0.0]] * 2))
    with RouterTap(lm) as tap:
        lm.hidden(view)
    assert all((chosen == 2).any(dim=-1).all() for chosen in tap.of(view).chosen)


def test_a_bias_on_the_choice_leaves_the_gates_of_what_is_chosen_alone() -> None:
    lm = tiny_moe("qwen3_moe", norm_topk_prob=False)
    install_biased_routers(lm, takes_part_in="choice")
    set_biases(lm, torch.tensor([[0.0, 0.0, 9.0, 0.0]] * 2))
    router = routers_of(lm)[0]
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    _, gates, chosen = router(hidden)
    assert (chosen[:, 0] == 2).all()
    probabilities = (hidden @ router.weight.T).softmax(dim=-1)
    torch.testing.assert_close(gates, probabilities.gather(1, chosen))


@every_family
def test_both_layouts_hear_the_same_tokens(family: str) -> None:
    packed, view = tiny_moe(family), ragged_view()
    padded = CausalLM(packed.model, layout="padded")
    heard = []
    for lm in (packed, padded):
        with RouterTap(lm) as tap:
            lm.hidden(view)
        heard.append(tap.of(view))
    for one, other in zip(heard[0].probabilities, heard[1].probabilities, strict=True):
        assert one.shape == (view.input_ids.shape[0], NUM_EXPERTS)
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    for one, other in zip(heard[0].chosen, heard[1].chosen, strict=True):
        assert one.equal(other)


def test_gradients_flow_through_what_is_heard_only_where_asked() -> None:
    lm, view = tiny_moe(), ragged_view()
    with RouterTap(lm) as tap, autocast():
        lm.hidden(view)
    assert not tap.of(view).probabilities[0].requires_grad
    with RouterTap(lm, with_gradient=True) as tap, autocast():
        lm.hidden(view)
    tap.of(view).probabilities[1].square().sum().backward()
    gradient = routers_of(lm)[1].weight.grad
    assert gradient is not None
    assert gradient.any()


@every_family
def test_a_recomputed_layer_is_heard_once_and_gives_the_same_gradients(family: str) -> None:
    found: list[dict[str, Tensor]] = []
    for checkpointed in (False, True):
        lm, view = tiny_moe(family).train(), ragged_view()
        control = install_biased_routers(lm)
        if checkpointed:
            lm.model.activation_checkpointing_enable(checkpointing_options(lm))
        for order in (None, UniformSample(generators())):
            tap = RouterTap(lm, with_gradient=True)
            with tap:
                if order is None:
                    hidden = lm.hidden(view)
                else:
                    with control.ordered(order):
                        hidden = lm.hidden(view)
                term = torch.stack([p.square().mean() for p in tap.of(view).probabilities])
                (hidden.square().mean() + term.sum()).backward()
        found.append({n: p.grad for n, p in lm.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_checkpointing_that_does_not_know_of_the_routers_is_an_error_not_a_second_hearing() -> None:
    lm, view = tiny_moe().train(), ragged_view()
    lm.model.activation_checkpointing_enable({"use_reentrant": False})
    with RouterTap(lm) as tap, pytest.raises(ModelError, match="checkpointing_options"):
        lm.hidden(view).sum().backward()
    assert len(tap.of(view).chosen) == 2


@every_family
def test_uniform_routing_spreads_tokens_evenly_whatever_the_scores(family: str) -> None:
    lm = tiny_moe(family)
    control = install_biased_routers(lm)
    set_biases(lm, torch.tensor([[0.0, 0.0, 50.0, 0.0]] * 2))
    hidden = torch.randn(4000, 32, generator=torch.Generator().manual_seed(1))
    with control.ordered(UniformSample(generators())):
        _, gates, chosen = routers_of(lm)[0](hidden)
    assert gates.eq(1 / NUM_CHOSEN).all()
    assert (chosen.sort(dim=-1).values.diff(dim=-1) > 0).all(), "no expert twice"
    counts = torch.bincount(chosen.flatten(), minlength=NUM_EXPERTS)
    # Five standard deviations of a binomial with p = K / E = 1/2.
    assert (counts - 2000).abs().max() < 5 * (4000 * 0.25) ** 0.5
    with control.ordered(UniformDense()):
        _, gates, chosen = routers_of(lm)[0](hidden)
    assert gates.eq(1 / NUM_EXPERTS).all()
    assert chosen[0].tolist() == list(range(NUM_EXPERTS))


def test_how_tokens_are_cut_changes_no_uniform_choice_and_layers_differ() -> None:
    lm = tiny_moe()
    control = install_biased_routers(lm)
    whole, first, second = (ragged_view(n) for n in ((5, 11, 3), (5, 11), (3,)))

    def chosen(order: UniformSample, *views: object) -> list[Tensor]:
        taps = []
        for view in views:
            with RouterTap(lm) as tap, control.ordered(order):
                lm.hidden(view)
            taps.append(tap.of(view).chosen)
        return [torch.cat(parts) for parts in zip(*taps, strict=True)]

    together = chosen(UniformSample(generators()), whole)
    apart = chosen(UniformSample(generators()), first, second)
    assert all(a.equal(b) for a, b in zip(together, apart, strict=True))
    assert not together[0].equal(together[1])


@every_family
def test_replayed_experts_give_the_same_answer_and_teach_the_router(family: str) -> None:
    lm, view = tiny_moe(family), ragged_view()
    control = install_biased_routers(lm)
    with RouterTap(lm) as tap:
        before = lm.hidden(view)
    routed = tap.of(view)
    with control.ordered(Replay(routed.chosen)):
        after = lm.hidden(view)
    assert after.equal(before)
    after.square().sum().backward()
    assert routers_of(lm)[0].weight.grad is not None
    assert routers_of(lm)[0].weight.grad.any()
    # Other scores, the same experts.
    set_biases(lm, some_biases(scale=30.0))
    with RouterTap(lm) as tap, control.ordered(Replay(routed.chosen)):
        lm.hidden(view)
    assert all(a.equal(b) for a, b in zip(tap.of(view).chosen, routed.chosen, strict=True))


def test_an_order_ends_with_its_block() -> None:
    lm, view = tiny_moe(), ragged_view()
    control = install_biased_routers(lm)
    before = lm.hidden(view)
    with control.ordered(UniformDense()):
        assert not lm.hidden(view).equal(before)
    assert lm.hidden(view).equal(before)


@pytest.mark.parametrize("order", [UniformSample(generators(num_layers=1)), Replay(())])
def test_an_order_for_another_number_of_layers_is_refused(order: UniformSample | Replay) -> None:
    control = install_biased_routers(tiny_moe())
    with pytest.raises(ModelError, match="for 2, those with experts"), control.ordered(order):
        pass


def test_the_bias_stays_in_float32_and_without_gradient() -> None:
    lm = tiny_moe()
    install_biased_routers(lm)
    set_biases(lm, some_biases())
    for cast in (torch.bfloat16, torch.float64):
        assert biases_of(lm.to(cast)).equal(some_biases())
    names = [n for n in lm.state_dict() if n.endswith("padd_bias")]
    assert len(names) == 2
    assert not any(n.endswith("padd_bias") for n, _ in lm.named_parameters())


def test_a_copy_of_a_model_takes_no_orders_of_the_first() -> None:
    from copy import deepcopy

    lm, view = tiny_moe(), ragged_view()
    control = install_biased_routers(lm)
    set_biases(lm, some_biases())
    copy = deepcopy(lm)
    routed = copy.hidden(view)
    with control.ordered(UniformDense()), RouterTap(lm) as tap:
        assert copy.hidden(view).equal(routed)
        with pytest.raises(ModelError, match="heard 0 of 2"):
            tap.of(view)
    assert len({id(router.control) for router in routers_of(copy)}) == 1


def test_installing_twice_keeps_the_biases() -> None:
    lm = tiny_moe()
    first = install_biased_routers(lm)
    set_biases(lm, some_biases())
    assert install_biased_routers(lm) is first
    assert biases_of(lm).equal(some_biases())


def test_dense_models_and_unknown_routers_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"dense llama.*leave the routing out"):
        install_biased_routers(CausalLM(tiny_llama()))

    class OwnRouter(MixtralTopKRouter):
        pass

    lm = tiny_moe()
    lm.model.model.layers[1].mlp.gate.__class__ = OwnRouter
    with pytest.raises(ModelError, match="router is a OwnRouter; it must be one of Mixtral"):
        install_biased_routers(lm)


def test_layers_without_experts_are_passed_over() -> None:
    lm, view = tiny_moe("qwen3_moe", mlp_only_layers=[0]), ragged_view()
    with RouterTap(lm) as tap:
        lm.hidden(view)
    assert len(tap.of(view).probabilities) == 1


def test_a_router_that_leaves_float16_says_so() -> None:
    lm = tiny_moe().to(torch.float16)
    install_biased_routers(lm)
    routers_of(lm)[1].weight.data.fill_(6e4)
    with pytest.raises(NumericsError, match=r"MoE layer 1 .* float16"):
        lm.hidden(ragged_view())


@pytest.mark.parametrize("wrong", ["nothing", "other tokens", "two passes"])
def test_a_tap_that_heard_something_else_says_so(wrong: str) -> None:
    lm, view = tiny_moe(), ragged_view()
    tap = RouterTap(lm)

    def two_passes() -> None:
        with tap:
            lm.hidden(view)
            lm.hidden(view)

    def other_tokens() -> None:
        with tap:
            lm.hidden(ragged_view((4,)))
        tap.of(view)

    def nothing() -> None:
        tap.of(view)

    do: dict[str, Callable[[], None]] = {
        "nothing": nothing,
        "other tokens": other_tokens,
        "two passes": two_passes,
    }
    with pytest.raises(ModelError, match="RouterTap heard"):
        do[wrong]()
