"""Routers of an existing mixture of experts, from a dense teacher of another width and depth."""

import pytest
import torch
from torch import Tensor

from tests.students.test_prune import calibration
from tests.tiny_models import byte_tokenizer, tiny_llama, tiny_qwen3
from tutelage.core.errors import ConfigError, DataError, ModelError
from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM, layers_of
from tutelage.students import Rerouting, UpcycledStudent, make_upcycled, reroute
from tutelage.students.moe import ClusteredSplit, centroid_rows, feed_forwards, routers_of
from tutelage.students.reroute import _clusters, _Correlation, _inputs
from tutelage.text import Formatter, collate


def many_rows() -> list[TokenBatch]:
    """More tokens than a hidden state has entries."""
    formatter = Formatter(byte_tokenizer())
    texts = [f"Row {at}: {'abcdefgh'[at % 7 :]} {at * 37 % 101}." for at in range(24)]
    return [*calibration(), collate([formatter.rollout({"text": t}, "row") for t in texts])]


def a_student(layers: int = 2, experts: int = 4) -> CausalLM:
    base = CausalLM(tiny_qwen3(seed=5, num_hidden_layers=layers))
    return make_upcycled(base, UpcycledStudent(experts=experts, active=2)).lm


def test_in_a_student_of_the_teachers_own_states_the_rows_are_the_centroids() -> None:
    teacher = CausalLM(tiny_llama())
    made = make_upcycled(teacher, UpcycledStudent(experts=4, active=4, router={"kind": "zeros"}))
    layers = reroute(made.lm, teacher, many_rows(), Rerouting(ridge=1e-9, keep_norm=False), seed=0)
    assert [each.order.tolist() for each in layers] == [[0, 1, 2, 3]] * 2
    assert [each.origin for each in layers] == [0, 1]
    assert all(each.explained == pytest.approx(1, abs=1e-4) for each in layers)
    for router, neurons, group in zip(
        routers_of(made.lm), feed_forwards(teacher), made.groups, strict=True
    ):
        torch.testing.assert_close(
            router.weight.detach(), centroid_rows(neurons, group), rtol=1e-3, atol=1e-3
        )


@torch.no_grad()
def test_a_linear_image_of_the_teachers_states_keeps_the_first_choice() -> None:
    # 32 entries of the teacher's states, seen through 48 by a map that loses nothing.
    from tutelage.students.moe import RidgeFit

    generator = torch.Generator().manual_seed(0)
    x_teacher = torch.randn(400, 32, generator=generator, dtype=torch.float64)
    lift = torch.randn(32, 48, generator=generator, dtype=torch.float64)
    centroid = torch.randn(8, 32, generator=generator, dtype=torch.float64)
    fit = RidgeFit()
    fit.add(x_teacher @ lift, x_teacher)
    rows = (fit.solve(1e-6) @ centroid.T).T
    wanted, found = x_teacher @ centroid.T, (x_teacher @ lift) @ rows.T
    assert (wanted.argmax(dim=1) == found.argmax(dim=1)).double().mean() > 0.99
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("match", ["identity", "hungarian"])
def test_only_routers_change_and_their_mean_length_stays(match: str) -> None:
    student, teacher = a_student(3), CausalLM(tiny_llama(hidden_size=48, num_hidden_layers=5))
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    orders = [each.order for each in reroute(student, teacher, many_rows(), Rerouting(match=match))]
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, before[name]) != name.endswith("mlp.gate.weight"), name
        if name.endswith("mlp.gate.weight"):
            lengths = [each.norm(dim=1).mean() for each in (weight, before[name])]
            torch.testing.assert_close(*lengths)
    assert all(sorted(order.tolist()) == [0, 1, 2, 3] for order in orders)
    assert not any(module._forward_pre_hooks for module in student.model.modules())


def inputs_of(
    student: CausalLM, teacher: CausalLM, layer: int, origin: int
) -> tuple[Tensor, Tensor]:
    rows = many_rows()
    x_s = torch.cat([_inputs(student, batch)[layer] for batch in rows])
    x_t = torch.cat([_inputs(teacher, batch)[origin] for batch in rows])
    return x_s, x_t


@torch.no_grad()
def test_each_layer_learns_from_the_teacher_layer_that_the_map_names() -> None:
    student, teacher = a_student(2), CausalLM(tiny_llama(hidden_size=48, num_hidden_layers=4))
    settings = Rerouting(ridge=1e-9, keep_norm=False)
    # As they are before any router is another: the map is fitted on these.
    seen = {at: inputs_of(student, teacher, *at) for at in ((0, 0), (1, 2))}
    reroute(student, teacher, many_rows(), settings)
    for (layer, origin), (x_s, x_t) in seen.items():
        members = _clusters(teacher, {origin}, 4, settings.split, 0)[origin]
        gate = layers_of(teacher.model)[origin].mlp.gate_proj.weight
        wanted = torch.stack([(x_t @ gate[m].T).mean(dim=1) for m in members], dim=1)
        best = torch.linalg.lstsq(x_s.double(), wanted.double()).solution
        found = x_s @ routers_of(student)[layer].weight.T
        torch.testing.assert_close(found.double(), x_s.double() @ best, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("changed", "allowed"),
    [
        ({"solver": "k_means_constrained"}, (12, 12)),
        ({"merge_from": 8}, (12, 12)),
        ({"size_tolerance": 0.5}, (6, 18)),
    ],
)
def test_every_setting_of_the_split_is_heard(
    changed: dict[str, str | int | float], allowed: tuple[int, int]
) -> None:
    teacher = CausalLM(tiny_llama())
    plain, other = ClusteredSplit(), ClusteredSplit.model_validate(changed)
    found = _clusters(teacher, [0], 4, other, 0)[0]
    assert [m.tolist() for m in found] != [
        m.tolist() for m in _clusters(teacher, [0], 4, plain, 0)[0]
    ]
    assert sorted(torch.cat(found).tolist()) == list(range(48))
    sizes = [len(members) for members in found]
    assert allowed[0] <= min(sizes) <= max(sizes) <= allowed[1]


def test_poor_clusters_are_refused_where_that_is_asked() -> None:
    split = ClusteredSplit(poor_clusters="refuse", size_tolerance=0.9)
    with pytest.raises(ConfigError, match="clusters of 2 of 2 layers are poor"):
        reroute(a_student(), CausalLM(tiny_llama()), many_rows(), Rerouting(split=split))


def test_matching_finds_the_experts_that_like_what_the_clusters_do() -> None:
    generator = torch.Generator().manual_seed(0)
    does = torch.rand(500, 6, generator=generator)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    likes = (does[:, order] + 0.3 * torch.rand(500, 6, generator=generator)).softmax(dim=1)
    found = _Correlation()
    for part in torch.arange(500).split(77):
        found.add(likes[part], does[part])
    assert torch.equal(found.best_match(), order)
    table = torch.corrcoef(torch.cat([likes, does], dim=1).T.double())[:6, 6:]
    torch.testing.assert_close(found.values(), table, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_rerouted_is_refused() -> None:
    teacher = CausalLM(tiny_llama())
    with pytest.raises(ModelError, match=r"'llama', which has no router"):
        reroute(CausalLM(tiny_llama()), teacher, many_rows(), Rerouting())
    with pytest.raises(DataError, match="calibration rows are empty"):
        reroute(a_student(), teacher, [], Rerouting())
    with pytest.raises(ModelError, match=r"student reads token \d+, and the teacher has 90"):
        reroute(
            a_student(),
            CausalLM(tiny_llama(vocab_size=90, pad_token_id=0)),
            many_rows(),
            Rerouting(),
        )


def test_a_matched_expert_gets_the_row_of_its_own_cluster() -> None:
    teacher = CausalLM(tiny_llama())
    plain, matched = a_student(experts=8), a_student(experts=8)
    first = reroute(plain, teacher, many_rows(), Rerouting())
    layers = reroute(matched, teacher, many_rows(), Rerouting(match="hungarian"))
    for one, other in zip(first, layers, strict=True):
        behind = [neurons.tolist() for neurons in other.experts]
        assert behind == [one.experts[cluster].tolist() for cluster in other.order.tolist()]
    orders = [each.order for each in layers]
    # An order that is its own inverse would not tell the two apart.
    assert any(not torch.equal(order, order.argsort()) for order in orders)
    for one, other, order in zip(routers_of(plain), routers_of(matched), orders, strict=True):
        torch.testing.assert_close(other.weight, one.weight[order])
