"""What neurons do on rows: means over tokens, marks, and the shares that follow from them."""

import math

import pytest
import torch
from torch import Tensor

from tests.students.test_prune import calibration
from tests.tiny_models import tiny_llama, tiny_qwen3
from tutelage.core.errors import DataError, ModelError
from tutelage.core.records import TokenBatch
from tutelage.models import CausalLM, layers_of
from tutelage.students.moe import (
    mean_activations,
    share_divergence,
    strongest_marks,
    target_shares,
    teacher_layer,
)

GROUPS = [torch.tensor([0, 3, 4]), torch.tensor([1]), torch.tensor([2, 5])]


def rows(batches: list[TokenBatch]) -> list[Tensor]:
    return [
        row
        for batch in batches
        for row in batch.student.input_ids.split(batch.student.row_starts.diff().tolist())
    ]


@torch.no_grad()
def by_hand(lm: CausalLM, kind: str) -> list[Tensor]:
    """Every token's activations in every layer, row by row, from the weights themselves."""
    seen: list[list[Tensor]] = [[] for _ in layers_of(lm.model)]
    for row in rows(calibration()):
        inputs: list[Tensor] = []
        handles = [
            layer.mlp.register_forward_pre_hook(lambda _m, args, to=inputs: to.append(args[0][0]))
            for layer in layers_of(lm.model)
        ]
        lm.model(row[None])
        for handle in handles:
            handle.remove()
        for at, (x, layer) in enumerate(zip(inputs, layers_of(lm.model), strict=True)):
            gate, up = x @ layer.mlp.gate_proj.weight.T, x @ layer.mlp.up_proj.weight.T
            silu = gate * gate.sigmoid()
            seen[at].append({"pre": gate, "act": silu, "glu": silu * up}[kind])
    return [torch.cat(parts) for parts in seen]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("kind", ["glu", "pre", "act"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_means_are_over_every_token_and_no_padding(kind, absolute: bool, layout) -> None:  # noqa: FBT001
    lm = CausalLM(tiny_llama(), layout=layout)
    found = mean_activations(lm, calibration(), kind=kind, absolute=absolute)
    for mean, signed in zip(found, by_hand(lm, kind), strict=True):
        expected = signed.abs() if absolute else signed
        torch.testing.assert_close(mean, expected.double().mean(dim=0), rtol=1e-4, atol=1e-6)
    assert (torch.stack(found) < 0).any() != absolute


def test_how_rows_are_cut_into_batches_changes_no_mean() -> None:
    lm = CausalLM(tiny_qwen3())
    whole = mean_activations(lm, calibration())
    swapped = mean_activations(lm, calibration()[::-1])
    for one, other in zip(whole, swapped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_looking_leaves_no_trace_and_wants_rows() -> None:
    lm = CausalLM(tiny_llama()).train()
    mean_activations(lm, calibration(), kind="act")
    assert lm.training
    hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in lm.model.modules()]
    assert not any(before or after for before, after in hooks)
    with pytest.raises(DataError, match="calibration rows are empty"):
        mean_activations(lm, [])


def test_a_family_without_gated_neurons_is_refused() -> None:
    from tests.models.test_causal_lm import model_of

    with pytest.raises(ModelError, match=r"'gpt2'; its feed-forward part must be down\(act"):
        mean_activations(CausalLM(model_of("gpt2")), calibration())


def test_marks_are_a_tokens_strongest_neurons_up_to_the_limit() -> None:
    lm = CausalLM(tiny_llama())
    num_tokens = sum(batch.num_tokens for batch in calibration())
    found = strongest_marks(lm, calibration(), marks_per_token=5, max_tokens=10**6)
    for marks, expected in zip(found, by_hand(lm, "glu"), strict=True):
        assert marks.shape == (48, num_tokens)
        assert (marks.sum(dim=0) == 5).all()
        strongest = expected.abs().topk(5, dim=1).indices
        assert torch.equal(marks.T.gather(1, strongest).all(dim=1), torch.ones(num_tokens) > 0)
    few = strongest_marks(lm, calibration(), marks_per_token=5, max_tokens=11)
    assert all(torch.equal(short, long[:, :11]) for short, long in zip(few, found, strict=True))


def test_target_shares_are_the_softmax_of_the_groups_means() -> None:
    activation = torch.tensor([0.1, -0.2, 0.4, 0.3, 0.2, -0.4], dtype=torch.float64)
    means = [(0.1 + 0.3 + 0.2) / 3, -0.2, 0.0]
    weights = [math.exp(mean / 0.1) for mean in means]
    expected = [weight / sum(weights) for weight in weights]
    assert target_shares(activation, GROUPS, xi=0.1).tolist() == pytest.approx(expected)
    assert float(target_shares(activation, GROUPS).sum()) == pytest.approx(1)
    assert target_shares(activation, GROUPS, xi=1e6).tolist() == pytest.approx(
        [1 / 3] * 3, abs=1e-5
    )
    assert target_shares(activation, GROUPS, xi=1e-4).tolist() == pytest.approx([1, 0, 0])


def test_share_divergence_is_kl_from_the_student_and_0_only_where_they_agree() -> None:
    student = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    target = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = sum(
        s * math.log(s / t) for s, t in zip([0.5, 0.25, 0.25], [0.2, 0.3, 0.5], strict=True)
    )
    assert float(share_divergence(student, target)) == pytest.approx(expected)
    assert float(share_divergence(target, student)) != pytest.approx(expected)
    assert float(share_divergence(target, target)) == pytest.approx(0, abs=1e-15)
    idle = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert float(share_divergence(idle, target)) == pytest.approx(math.log(5))
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(2, 50, 4, generator=generator).softmax(dim=-1)
    assert (share_divergence(pairs[0], pairs[1]) > 0).all()


@pytest.mark.parametrize(
    ("num_student", "num_teacher"), [(48, 28), (27, 30), (6, 6), (1, 9), (9, 1)]
)
def test_the_layer_map_is_in_range_rises_and_uses_what_it_can(
    num_student: int, num_teacher: int
) -> None:
    layers = [
        teacher_layer(at, num_student=num_student, num_teacher=num_teacher)
        for at in range(num_student)
    ]
    assert layers == sorted(layers)
    assert layers[0] == 0
    assert max(layers) < num_teacher
    if num_student >= num_teacher:
        assert set(layers) == set(range(num_teacher))


def test_the_layer_map_is_that_of_the_papers_pairs() -> None:
    deep = [teacher_layer(at, num_student=27, num_teacher=30) for at in range(27)]
    assert set(range(30)) - set(deep) == {9, 19, 29}
