"""First routers: what their logits mean, and whether they choose the experts that have the work."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.students.test_prune import calibration
from tests.tiny_models import tiny_llama, tiny_qwen3
from tutelage.models import CausalLM, layers_of
from tutelage.students import UpcycledStudent
from tutelage.students.clustering import Search, Sizes, balanced_k_means
from tutelage.students.moe import (
    FeedForward,
    Groups,
    RidgeFit,
    centroid_rows,
    feed_forwards,
    make_upcycled,
    neuron_rows,
    rescaled,
    routers_of,
)

NUM_EXPERTS, EACH, WIDTH = 8, 16, 24


def planted(seed: int = 0) -> tuple[FeedForward, Tensor, Tensor]:
    """Neurons whose gates lie around eight directions, their true expert, and inputs."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0][:NUM_EXPERTS]
    truth = torch.arange(NUM_EXPERTS).repeat_interleave(EACH)
    truth = truth[torch.randperm(len(truth), generator=generator)]
    noise = 0.1 * torch.randn(len(truth), WIDTH, generator=generator)
    neurons = FeedForward(
        gate=directions[truth] + noise,
        up=torch.randn(len(truth), WIDTH, generator=generator),
        down=torch.randn(WIDTH, len(truth), generator=generator),
    )
    return neurons, truth, 2 * torch.randn(600, WIDTH, generator=generator)


def groups_of(label: Tensor) -> Groups:
    experts = tuple((label == at).nonzero()[:, 0] for at in range(NUM_EXPERTS))
    return Groups(experts=experts, shared=torch.arange(0))


def masses(neurons: FeedForward, x: Tensor, groups: Groups) -> Tensor:
    """How much each expert would do: the size of its neurons' gates behind their activation."""
    size = nn.functional.silu(x @ neurons.gate.T).clamp(min=0)
    return torch.stack([size[:, members].sum(dim=1) for members in groups.experts], dim=1)


def captured(chosen: Tensor, mass: Tensor) -> float:
    return float(mass.gather(1, chosen).sum() / mass.sum())


def test_a_centroids_logit_is_the_mean_pre_activation_of_its_neurons() -> None:
    neurons, truth, x = planted()
    groups = groups_of(truth)
    logits = x.double() @ centroid_rows(neurons, groups).double().T
    for at, members in enumerate(groups.experts):
        expected = (x.double() @ neurons.gate[members].double().T).mean(dim=1)
        torch.testing.assert_close(logits[:, at], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rows", "matrix"), [("up_proj", "up"), ("concat", "gate")])
def test_centroids_are_of_the_rows_that_x_is_multiplied_by(rows, matrix: str) -> None:
    neurons, truth, _ = planted()
    groups = groups_of(truth)
    expected = torch.stack([getattr(neurons, matrix)[m].mean(dim=0) for m in groups.experts])
    torch.testing.assert_close(centroid_rows(neurons, groups, rows=rows), expected)


def test_on_planted_neurons_the_router_chooses_the_expert_with_the_work() -> None:
    neurons, truth, x = planted()
    sizes = Sizes.equal(len(truth), NUM_EXPERTS)
    found = balanced_k_means(neuron_rows(neurons), sizes, Search())
    groups = groups_of(found.label)
    mass = masses(neurons, x, groups)
    logits = x @ centroid_rows(neurons, groups).T
    by_chance = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    first = [scores.argmax(dim=1) == mass.argmax(dim=1) for scores in (logits, by_chance)]
    assert float(first[0].float().mean()) > 0.95
    assert float(first[1].float().mean()) < 0.2
    two = captured(logits.topk(2).indices, mass)
    oracle = captured(mass.topk(2).indices, mass)
    chance = captured(by_chance.topk(2).indices, mass)
    assert two == pytest.approx(oracle, rel=0.02)
    assert chance < 0.5 * oracle


def test_rows_are_raw_or_of_length_one_and_of_one_matrix_or_two() -> None:
    neurons, _, _ = planted()
    assert torch.equal(neuron_rows(neurons), neurons.gate)
    assert torch.equal(neuron_rows(neurons, "up_proj"), neurons.up)
    both = neuron_rows(neurons, "concat", normalised=True)
    assert both.shape == (NUM_EXPERTS * EACH, 2 * WIDTH)
    lengths = torch.stack([both[:, :WIDTH].norm(dim=1), both[:, WIDTH:].norm(dim=1)])
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    silent = FeedForward(gate=torch.zeros(2, 3), up=torch.ones(2, 3), down=torch.ones(3, 2))
    assert not neuron_rows(silent, normalised=True).any()


def test_rescaled_rows_have_the_mean_length_and_keep_their_order() -> None:
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    short = rescaled(rows, 0.25)
    assert float(short.norm(dim=1).mean()) == pytest.approx(0.25)
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal((x @ rows.T).argsort(), (x @ short.T).argsort())
    assert not rescaled(torch.zeros(3, 4), 0.5).any()


@pytest.mark.parametrize("family", [tiny_llama, tiny_qwen3])
def test_every_layers_router_is_made_of_its_own_layers_rows(family) -> None:
    base = CausalLM(family(num_hidden_layers=3))
    raw = {"kind": "centroids", "mean_norm": None}
    made = make_upcycled(base, UpcycledStudent(experts=4, active=2, router=raw))
    for neurons, group, router in zip(
        feed_forwards(base), made.groups, routers_of(made.lm), strict=True
    ):
        torch.testing.assert_close(router.weight.detach(), centroid_rows(neurons, group))


@torch.no_grad()
def test_the_default_router_is_short_and_chooses_as_the_raw_one() -> None:
    base = CausalLM(tiny_llama())
    raw = {"kind": "centroids", "mean_norm": None}
    long, short = (
        routers_of(make_upcycled(base, UpcycledStudent(experts=4, active=2, **how)).lm)
        for how in ({"router": raw}, {})
    )
    for one, other in zip(long, short, strict=True):
        assert float(other.weight.detach().norm(dim=1).mean()) == pytest.approx(0.01, rel=1e-4)
        ratio = (one.weight / other.weight).detach()
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("settings", "std"),
    [
        ({"router": {"kind": "zeros"}}, 0.0),
        ({"router": {"kind": "random", "std": 0.5}}, 0.5),
        ({"split": {"kind": "copies"}}, 0.02),
    ],
    ids=str,
)
def test_other_routers_are_zero_or_small_chance(settings: dict[str, Any], std: float) -> None:
    base = CausalLM(tiny_llama(hidden_size=64, num_hidden_layers=4))
    made = make_upcycled(base, UpcycledStudent(experts=16, active=2, **settings))
    weights = torch.stack([router.weight for router in routers_of(made.lm)]).detach()
    assert float(weights.std()) == pytest.approx(std, rel=0.05)
    assert std == 0 or not torch.equal(weights[0], weights[1])


def test_a_fitted_router_finds_the_work_better_than_centroids_do() -> None:
    base = CausalLM(tiny_llama(num_hidden_layers=3))
    found: dict[str, float] = {}
    for kind in ("centroids", "fitted"):
        plan = UpcycledStudent(experts=4, active=2, router={"kind": kind})
        made = make_upcycled(base, plan, calibration())
        total = 0.0
        for layer, group, neurons, router in zip(
            layers_of(base.model),
            made.groups,
            feed_forwards(base),
            routers_of(made.lm),
            strict=True,
        ):
            seen: list[Tensor] = []
            handle = layer.mlp.register_forward_pre_hook(
                lambda _m, args, seen=seen: seen.append(args[0].flatten(0, -2))
            )
            for batch in calibration():
                base.hidden(batch.student)
            handle.remove()
            x = torch.cat(seen).detach()
            size = nn.functional.silu(x @ neurons.gate.T) * (x @ neurons.up.T)
            written = size.abs() * neurons.down.norm(dim=0)
            mass = torch.stack([written[:, m].sum(dim=1) for m in group.experts], dim=1)
            total += captured((x @ router.weight.detach().T).topk(2).indices, mass)
        found[kind] = total / 3
    assert found["fitted"] > found["centroids"] + 0.02


def test_the_streamed_ridge_is_the_one_of_all_rows_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    fit = RidgeFit()
    for part in torch.arange(50).split(7):
        fit.add(x[part], y[part])
    weight = 0.1 * float(x.square().sum(dim=0).mean())
    rows = torch.cat([x, weight**0.5 * torch.eye(6, dtype=torch.float64)])
    goals = torch.cat([y, torch.zeros(6, 3, dtype=torch.float64)])
    torch.testing.assert_close(fit.solve(0.1), torch.linalg.lstsq(rows, goals).solution)
    plain = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(fit.solve(1e-12), plain, rtol=1e-6, atol=1e-8)
