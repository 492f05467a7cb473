"""A mixture of experts is the dense model it was made of, while all experts are at work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, OlmoeConfig, PreTrainedModel

from tests.students.test_prune import calibration
from tests.tiny_models import build, byte_tokenizer, tiny_gemma2, tiny_llama, tiny_qwen2, tiny_qwen3
from tutelage.core.errors import ConfigError, DataError, ModelError
from tutelage.models import CausalLM, layers_of, load_model, parameter_count, save_model
from tutelage.students import UpcycledStudent
from tutelage.students.moe import (
    Groups,
    Upcycled,
    all_experts,
    counted,
    equal_gate,
    feed_forwards,
    make_upcycled,
    shape_of,
    upcycle,
    upcycled_config,
)

FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "mixtral": tiny_llama,
    "qwen2_moe": tiny_qwen2,
    "qwen3_moe": tiny_qwen3,
}
every_family = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.arange(3, 63).view(2, 30)
ZEROS = {"kind": "zeros"}
CLOSE = {"rtol": 0.0, "atol": 1e-5}


def dense(family: str, **sizes: Any) -> CausalLM:
    return CausalLM(FAMILIES[family](**{"intermediate_size": 48, **sizes}))


def made(family: str, *, experts: int = 4, active: int = 4, **settings: Any) -> Upcycled:
    plan = UpcycledStudent(experts=experts, active=active, **settings)
    return make_upcycled(dense(family), plan, calibration())


@torch.no_grad()
def logits(lm: CausalLM | PreTrainedModel) -> Tensor:
    model = lm.model if isinstance(lm, CausalLM) else lm
    return model(IDS).logits


SPLITS: list[dict[str, Any]] = [
    {"kind": "clustered"},
    {"kind": "clustered", "rows": "up_proj", "normalised": True},
    {"kind": "clustered", "rows": "concat", "merge_from": 8},
    {"kind": "clustered", "size_tolerance": 0.3, "poor_clusters": "ignore"},
    {"kind": "co_activation"},
    {"kind": "random"},
    {"kind": "contiguous"},
    {"kind": "copies"},
    {"kind": "drop_copies", "redrawn": 0.0},
]


@every_family
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: "-".join(map(str, split.values())))
def test_with_all_experts_and_a_zero_router_the_stock_model_is_the_dense_one(
    family: str, split: dict[str, Any]
) -> None:
    experts = made(family, split=split, router=ZEROS)
    assert experts.lm.config.model_type == family
    torch.testing.assert_close(logits(experts.lm), logits(dense(family)), **CLOSE)


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_gates_that_keep_their_softmax_are_scaled_by_the_number_of_experts(family: str) -> None:
    whole = made(family, router=ZEROS, gates="softmax")
    assert not whole.lm.config.norm_topk_prob
    torch.testing.assert_close(logits(whole.lm), logits(dense(family)), **CLOSE)
    few, renormalised = (
        made(family, active=2, router=ZEROS, gates=gates) for gates in ("softmax", "renormalised")
    )
    # Equal gates are scaled to 1 each, by N as by K.
    torch.testing.assert_close(logits(few.lm), logits(renormalised.lm), **CLOSE)


@every_family
@pytest.mark.parametrize("active", [1, 2, 3])
def test_fewer_active_experts_are_the_dense_model_again_when_all_get_the_same_gate(
    family: str, active: int
) -> None:
    plan = UpcycledStudent(experts=4, active=active)
    experts = make_upcycled(dense(family), plan)
    with all_experts(experts.lm, equal_gate(plan, experts.shape)):
        torch.testing.assert_close(logits(experts.lm), logits(dense(family)), **CLOSE)
    assert (logits(experts.lm) - logits(dense(family))).abs().max() > 0.01


def test_two_of_four_experts_are_the_dense_model_with_only_their_neurons() -> None:
    plan = UpcycledStudent(experts=4, active=2, split={"kind": "contiguous"}, router=ZEROS)
    experts = make_upcycled(dense("mixtral"), plan)
    with counted(experts.lm) as counts:
        found = logits(experts.lm)
    chosen = (counts[0] > 0).nonzero()[:, 0]
    assert len(chosen) == 2
    half = dense("mixtral")
    for neurons, count in zip(feed_forwards(half), counts, strict=True):
        for at in (count == 0).nonzero()[:, 0].tolist():
            neurons.down[:, 12 * at : 12 * (at + 1)] = 0
    torch.testing.assert_close(found, logits(half), **CLOSE)


@pytest.mark.parametrize("active", [1, 2, 4])
def test_experts_that_are_copies_are_the_dense_model_however_many_are_active(active: int) -> None:
    for family in FAMILIES:
        copies = made(family, active=active, split={"kind": "copies"})
        torch.testing.assert_close(logits(copies.lm), logits(dense(family)), **CLOSE)


@torch.no_grad()
def test_redrawn_neurons_are_as_many_as_asked_and_like_those_they_replace() -> None:
    plan = UpcycledStudent(experts=3, active=1, split={"kind": "drop_copies", "redrawn": 0.25})
    base = dense("qwen3_moe", intermediate_size=400)
    experts = make_upcycled(base, plan).lm
    neurons = feed_forwards(base)[0]
    stack = layers_of(experts.model)[0].mlp.experts
    new: list[tuple[int, ...]] = []
    for gate_up, down in zip(stack.gate_up_proj, stack.down_proj, strict=True):
        gate, up = gate_up.chunk(2)
        changed = [
            (mine != theirs).any(dim=1).nonzero()[:, 0].tolist()
            for mine, theirs in ((gate, neurons.gate), (up, neurons.up), (down.T, neurons.down.T))
        ]
        assert changed[0] == changed[1] == changed[2]
        assert len(changed[0]) == 100
        new.append(tuple(changed[0]))
        for mine, theirs in ((gate, neurons.gate), (up, neurons.up), (down.T, neurons.down.T)):
            assert float(mine[new[-1], :].std() / theirs[new[-1], :].std()) == pytest.approx(
                1, abs=0.1
            )
    assert len(set(new)) == 3


@every_family
def test_the_experts_of_a_layer_add_up_to_the_dense_feed_forward_part(family: str) -> None:
    base = dense(family)
    experts = made(family, active=2)
    mlp, block = layers_of(base.model)[1].mlp, layers_of(experts.lm.model)[1].mlp
    x = torch.randn(7, 32)
    everyone = torch.arange(4).expand(7, 4)
    with torch.no_grad():
        # Down columns are scaled by K = 2, so a gate of a half is a gate of 1.
        found = block.experts(x, everyone, torch.full((7, 4), 0.5))
        torch.testing.assert_close(found, mlp(x), rtol=1e-5, atol=1e-5)


@every_family
def test_every_neuron_goes_to_one_expert(family: str) -> None:
    for split in SPLITS[:-2]:
        for group in made(family, split=split).groups:
            members = torch.cat([*group.experts, group.shared])
            assert sorted(members.tolist()) == list(range(48))


def test_swapping_two_neurons_across_experts_is_seen_only_when_some_rest() -> None:
    base = dense("mixtral")
    first = torch.arange(48).view(4, 12)
    other = first.clone()
    other[0, 0], other[3, 5] = first[3, 5], first[0, 0]

    def answer(groups: Tensor, active: int) -> Tensor:
        plan = UpcycledStudent(experts=4, active=active, split={"kind": "contiguous"})
        rows = [torch.randn(4, 32, generator=torch.Generator().manual_seed(1))] * 2
        rows = rows if active < 4 else [torch.zeros(4, 32)] * 2
        group = Groups(experts=tuple(groups), shared=torch.arange(0))
        return logits(upcycle(base, plan, [group] * 2, rows))

    torch.testing.assert_close(answer(first, 4), answer(other, 4), **CLOSE)
    assert (answer(first, 2) - answer(other, 2)).abs().max() > 1e-3


@pytest.mark.parametrize("shared", [1, 2])
def test_a_shared_expert_counts_fully_and_holds_the_most_active_neurons(shared: int) -> None:
    plan = UpcycledStudent(experts=8 - shared, active=8 - shared, shared=shared, router=ZEROS)
    base = dense("qwen2_moe")
    experts = make_upcycled(base, plan, calibration())
    torch.testing.assert_close(logits(experts.lm), logits(base), **CLOSE)
    assert experts.shape.num_shared == 6 * shared
    sums: list[Tensor] = []
    handle = layers_of(base.model)[0].mlp.down_proj.register_forward_pre_hook(
        lambda _m, args: sums.append(args[0][0].abs().sum(dim=0))
    )
    for batch in calibration():
        for row in batch.student.input_ids.split(batch.student.row_starts.diff().tolist()):
            base.model(row[None])
    handle.remove()
    most_active = torch.stack(sums).sum(dim=0).topk(6 * shared).indices.sort().values
    assert torch.equal(experts.groups[0].shared, most_active)


def test_olmoe_is_no_host_for_its_norms_change_the_model() -> None:
    base = dense("mixtral")
    sizes = base.config.to_dict()
    for name in ("model_type", "architectures", "intermediate_size", "dtype", "head_dim"):
        sizes.pop(name, None)
    config = OlmoeConfig(
        **sizes, intermediate_size=12, num_experts=4, num_experts_per_tok=4, norm_topk_prob=True
    )
    olmoe = build(config)
    experts = made("mixtral", router=ZEROS).lm
    theirs, ours = olmoe.state_dict(), experts.state_dict()
    with torch.no_grad():
        for name in theirs:
            source = ours.get(f"model.{name}")
            if source is None:
                theirs[name].fill_(1.0)  # the norms of queries and keys
            elif source.shape == theirs[name].shape:
                theirs[name].copy_(source)
        for mine, their in zip(layers_of(experts.model), olmoe.model.layers, strict=True):
            width = mine.mlp.experts.down_proj.shape[2]
            gate, up = mine.mlp.experts.gate_up_proj.split(width, dim=1)
            their.mlp.experts.gate_up_proj.copy_(torch.cat([gate[:, :12], up[:, :12]], dim=1))
            their.mlp.experts.down_proj.copy_(mine.mlp.experts.down_proj[:, :, :12])
    assert (logits(olmoe) - logits(base)).abs().max() > 0.05


@every_family
@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_is_loaded_by_plain_transformers_and_generates(
    family: str,
    tied: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    plan = UpcycledStudent(experts=4, active=2)
    experts = make_upcycled(dense(family, tie_word_embeddings=tied), plan)
    folder = save_model(experts.lm, byte_tokenizer(), tmp_path / "experts")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.config.model_type == family
    assert plain.config.router_aux_loss_coef == 0
    assert torch.equal(logits(plain), logits(experts.lm))
    for name, weight in experts.lm.model.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name])
    assert torch.equal(logits(load_model(str(folder)).lm), logits(experts.lm))
    prompt = IDS[:1, :9]
    asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
    written = [plain.generate(prompt, use_cache=cache, **asked).tolist() for cache in (True, False)]
    assert written[0] == written[1]
    assert len(written[0][0]) > 12


@every_family
def test_what_was_built_has_the_shape_that_was_promised(family: str) -> None:
    for split in SPLITS:
        plan = UpcycledStudent(experts=4, active=2, split=split)
        base = dense(family)
        experts = make_upcycled(base, plan, calibration()).lm
        config = upcycled_config(base.config, plan)
        assert config.to_diff_dict() == experts.config.to_diff_dict()
        count = parameter_count(config)
        assert count.total == experts.num_parameters()
        stack = layers_of(experts.model)[0].mlp.experts
        idle = 2 * 2 * sum(weight[0].numel() for weight in stack.parameters())
        assert count.active_feed_forward == count.feed_forward - idle


def test_it_shares_no_weight_with_the_dense_model_and_leaves_it_alone() -> None:
    base = dense("qwen2_moe", tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    experts = make_upcycled(base, UpcycledStudent(experts=4, active=2)).lm
    theirs = {weight.data_ptr() for weight in base.state_dict().values()}
    assert theirs.isdisjoint(weight.data_ptr() for weight in experts.state_dict().values())
    with torch.no_grad():
        for weight in experts.parameters():
            weight.add_(1.0)
    assert all(torch.equal(base.state_dict()[name], weight) for name, weight in before.items())
    assert experts.head.weight is experts.model.get_input_embeddings().weight


def test_the_same_seed_makes_the_same_model_and_disturbs_nobody() -> None:
    def weights(seed: int, **split: Any) -> list[Tensor]:
        plan = UpcycledStudent(experts=4, active=2, split=split)
        torch.manual_seed(7)
        made_ = make_upcycled(dense("mixtral"), plan, seed=seed).lm
        return [*made_.state_dict().values(), torch.rand(3)]

    for kind in ("clustered", "random", "drop_copies"):
        first, again, other = weights(1, kind=kind), weights(1, kind=kind), weights(2, kind=kind)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert torch.equal(first[-1], other[-1])


def test_a_head_width_of_its_own_and_scaled_positions_are_carried_over() -> None:
    for family in ("mixtral", "qwen3_moe"):
        base = dense(
            family,
            head_dim=16,
            rms_norm_eps=3e-4,
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 777.0},
        )
        experts = make_upcycled(base, UpcycledStudent(experts=4, active=4, router=ZEROS)).lm
        torch.testing.assert_close(logits(experts), logits(base), **CLOSE)


def test_sliding_windows_of_some_layers_are_carried_over_or_refused() -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    plan = UpcycledStudent(experts=4, active=4, router=ZEROS)
    base = dense("qwen2_moe", **windows)
    assert set(base.config.layer_types) == {"sliding_attention", "full_attention"}
    torch.testing.assert_close(logits(make_upcycled(base, plan).lm), logits(base), **CLOSE)
    with pytest.raises(ModelError, match=r"layers attend differently \(full_attention, sliding"):
        make_upcycled(dense("qwen3_moe", **windows), plan)


def test_half_precision_is_kept() -> None:
    base = dense("mixtral").to(torch.bfloat16)
    experts = make_upcycled(base, UpcycledStudent(experts=4, active=4, router=ZEROS)).lm
    assert {weight.dtype for weight in experts.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(experts), logits(base), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("settings", "error", "line"),
    [
        ({"experts": 5}, ConfigError, r"student\.experts is 5, .* 48 neurons.*Take 4 or 6, or set"),
        ({"active": 5}, ConfigError, r"student\.active is 5; it must be from 1 to .*, 4"),
        ({"shared": 1}, ConfigError, r"4 and 1 shared, which does not divide .* Take 3 or 5"),
        ({"experts": 3, "shared": 1}, ConfigError, r"mixtral has no expert that every token"),
        ({"gates": "softmax"}, ConfigError, r"mixtral always divides .* must be renormalised"),
        ({"split": {"kind": "co_activation"}}, DataError, r"no calibration rows; there must"),
        ({"router": {"kind": "fitted"}}, DataError, r"router\.kind fitted looks .* no calibration"),
        (
            {"split": {"kind": "copies"}, "router": {"kind": "centroids"}},
            ConfigError,
            r"router\.kind is centroids with split\.kind copies",
        ),
        ({"split": {"kind": "copies"}, "shared": 1}, ConfigError, r"student\.shared is 1 with"),
        (
            {"split": {"kind": "clustered", "poor_clusters": "refuse", "size_tolerance": 0.5}},
            ConfigError,
            r"clusters of \d of 2 layers are poor, first layer 0.*split\.poor_clusters is refuse",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused_in_one_line(
    settings: dict[str, Any], error: type[Exception], line: str
) -> None:
    plan = UpcycledStudent(**{"experts": 4, "active": 2, **settings})
    with pytest.raises(error, match=line) as caught:
        make_upcycled(dense("mixtral"), plan)
    assert "\n" not in str(caught.value)


def test_other_families_are_refused_with_advice() -> None:
    plan = UpcycledStudent(experts=4, active=2)
    with pytest.raises(ModelError, match=r"'gemma2'; .* llama, mistral, qwen2, qwen3.*add a line"):
        make_upcycled(CausalLM(tiny_gemma2()), plan)
    with pytest.raises(ModelError, match=r"attention_bias is on; it must be off, since mixtral"):
        make_upcycled(dense("mixtral", attention_bias=True), plan)
    with (
        pytest.raises(ModelError, match=r"'llama', which has no router"),
        counted(dense("mixtral")),
    ):
        pass


def test_room_is_rounded_up_for_matrix_kernels_and_what_is_over_stays_zero() -> None:
    plan = UpcycledStudent(experts=16, active=16, router=ZEROS)
    base = dense("mixtral")
    assert (shape_of(base.config, plan).largest, shape_of(base.config, plan).width) == (3, 8)
    experts = make_upcycled(base, plan).lm
    torch.testing.assert_close(logits(experts), logits(base), **CLOSE)
    stack = layers_of(experts.model)[0].mlp.experts
    experts.model(IDS).logits.square().mean().backward()
    for weight, over in (
        (stack.gate_up_proj, (slice(None), slice(3, 8))),
        (stack.gate_up_proj, (slice(None), slice(11, 16))),
        (stack.down_proj, (slice(None), slice(None), slice(3, 8))),
    ):
        assert not weight[over].any()
        assert not weight.grad[over].any()
