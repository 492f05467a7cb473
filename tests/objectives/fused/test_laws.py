"""Laws of the fused path that hold for every objective: cuts, masks, memory, edges."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.objectives.fused.problems import (
    FEATURES,
    KINDS,
    Features,
    error,
    exact,
    fused,
    in_dtype,
    make_case,
    name_of,
    objective_of,
    plain,
    scores_of,
)
from tutelage.core.targets import Head, HiddenTarget, LogitsTarget
from tutelage.objectives.fused import FusedOptions, fused_loss, fused_per_token
from tutelage.objectives.moved_targets import Budget, NoMove, Taid, Tempered

FORWARD_KL = objective_of({"kind": "forward_kl"})
every_kind = pytest.mark.parametrize("settings", KINDS, ids=name_of)


def loss_of(case: Any, **options: Any) -> Any:
    return fused_loss(
        case.hidden,
        case.head,
        case.target,
        FORWARD_KL,
        token_weights=case.weights,
        options=FusedOptions(**options),
    )


@given(
    num_tokens=st.integers(1, 40),
    num_entries=st.integers(2, 90),
    student_rows=st.integers(-1, 3),
    tile=st.integers(1, 45),
    seed=st.integers(0, 5),
)
def test_no_shape_and_no_tile_changes_the_answer(
    num_tokens: int, num_entries: int, student_rows: int, tile: int, seed: int
) -> None:
    features = Features(bias=True, student_rows=student_rows)
    case = make_case(features, num_tokens=num_tokens, num_entries=num_entries, seed=seed)
    case = in_dtype(case, torch.float64)
    values, gradients = fused(case, FORWARD_KL, tile_tokens=tile)
    true_values, true_gradients = plain(case, FORWARD_KL)
    torch.testing.assert_close(values, true_values, rtol=1e-10, atol=1e-12)
    for got, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile", [1, 4, 6, 7, 12, 13, 99])
def test_cutting_into_tiles_changes_no_gradient(dtype: torch.dtype, tile: int) -> None:
    case = make_case(FEATURES["softcap"], dtype=dtype)
    whole_values, whole = fused(case, FORWARD_KL, tile_tokens=13)
    values, cut = fused(case, FORWARD_KL, tile_tokens=tile)
    torch.testing.assert_close(values, whole_values, rtol=2e-5, atol=1e-6)
    for got, wanted in zip(cut, whole, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_float64_on_either_side_makes_the_answer_float64(side: str) -> None:
    case = make_case(FEATURES["plain"])
    wide = in_dtype(case, torch.float64)
    mixed = (
        replace(case, target=wide.target)
        if side == "teacher"
        else replace(wide, target=case.target)
    )
    values, _ = fused(mixed, FORWARD_KL)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, plain(wide, FORWARD_KL)[0], rtol=1e-5, atol=1e-6)


@every_kind
def test_a_weight_of_zero_takes_a_token_out_of_loss_and_gradients(
    settings: Mapping[str, Any],
) -> None:
    objective = objective_of(settings)
    case = make_case(FEATURES["bias"])
    case.weights[4] = 0
    case.weights[9] = 0
    kept = [i for i in range(13) if i not in (4, 9)]
    target = case.target
    assert isinstance(target, HiddenTarget)
    without = replace(
        case,
        hidden=case.hidden.detach()[kept].requires_grad_(),
        weights=case.weights[kept],
        target=replace(target, hidden=target.hidden[kept], labels=target.labels[kept]),
    )
    _, (hidden, *head) = fused(case, objective, tile_tokens=5)
    _, (kept_hidden, *kept_head) = fused(without, objective)
    torch.testing.assert_close(hidden[kept], kept_hidden)
    assert (hidden[[4, 9]] == 0).all()
    torch.testing.assert_close(head, kept_head)


def test_a_nan_row_shows_in_its_token_and_a_weight_of_zero_keeps_it_out_of_the_rest() -> None:
    case = make_case(FEATURES["plain"])
    with torch.no_grad():
        case.hidden[2] = torch.nan
    out = loss_of(case)
    assert out.per_token.isnan().nonzero().flatten().tolist() == [2]
    assert out.loss.isnan()
    case.weights[2] = 0
    out = loss_of(case)
    assert out.per_token.isnan().sum() == 1
    assert out.loss.isfinite()
    gradients = torch.autograd.grad(out.loss, case.leaves())
    assert torch.equal(gradients[0][2], torch.zeros(16))
    assert gradients[0].isfinite().all()


@pytest.mark.parametrize("num_tokens", [0, 5])
@pytest.mark.parametrize("features", ["bias", "given logits"])
def test_nothing_to_train_is_a_differentiable_zero(num_tokens: int, features: str) -> None:
    case = make_case(FEATURES[features], num_tokens=num_tokens)
    case.weights.zero_()
    out = loss_of(case)
    assert out.loss.item() == 0
    assert out.loss.requires_grad
    for gradient, leaf in zip(
        torch.autograd.grad(out.loss, case.leaves()), case.leaves(), strict=True
    ):
        assert torch.equal(gradient, torch.zeros_like(leaf))


def test_a_uniform_nat_per_token_is_that_loss_whatever_their_number() -> None:
    for num_tokens in (1, 7, 40):
        case = make_case(FEATURES["plain"], num_tokens=num_tokens)
        head = Head(weight=torch.zeros(8, 16, requires_grad=True))
        target = LogitsTarget(logits=torch.tensor([[9.0] + [0.0] * 7]).repeat(num_tokens, 1))
        out = fused_loss(case.hidden, head, target, FORWARD_KL, token_weights=case.weights)
        want = FORWARD_KL.per_token(torch.zeros(1, 8), LogitsTarget(logits=target.logits[:1]))
        torch.testing.assert_close(out.loss.detach(), want[0])


def test_a_closed_form_on_three_entries() -> None:
    head = Head(weight=torch.eye(3, requires_grad=True))
    hidden = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    p = torch.tensor([0.5, 0.25, 0.25])
    out = fused_loss(
        hidden,
        head,
        LogitsTarget(logits=p.log()[None]),
        FORWARD_KL,
        token_weights=torch.tensor([1.0]),
    )
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(out.loss.detach(), torch.tensor(3.0).log() - entropy)
    (gradient,) = torch.autograd.grad(out.loss, hidden)
    torch.testing.assert_close(gradient, (1 / 3 - p)[None])


def test_gradients_reach_nothing_of_the_teacher() -> None:
    case = make_case(FEATURES["bias"])
    target = case.target
    assert isinstance(target, HiddenTarget)
    leaves = [target.hidden, target.head.weight, target.head.bias]
    for leaf in leaves:
        leaf.requires_grad_()
    out = loss_of(case)
    assert not out.per_token.requires_grad
    out.loss.backward()
    assert all(leaf.grad is None for leaf in leaves)


def test_a_frozen_student_gets_a_loss_and_no_gradient() -> None:
    case = make_case(FEATURES["bias"])
    still = in_dtype(case, torch.float32)
    for leaf in still.leaves():
        leaf.requires_grad_(requires_grad=False)
    out = loss_of(still, tile_tokens=5)
    assert not out.loss.requires_grad
    torch.testing.assert_close(out.per_token, loss_of(case).per_token)
    torch.testing.assert_close(out.loss, loss_of(case).loss.detach())
    with torch.no_grad():
        torch.testing.assert_close(loss_of(case).loss, out.loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_upstream_gradient_scales_all_gradients(dtype: torch.dtype) -> None:
    case = make_case(FEATURES["bias"], dtype=dtype)
    once = torch.autograd.grad(loss_of(case).loss, case.leaves())
    fourfold = torch.autograd.grad(loss_of(case).loss * 4, case.leaves())
    for one, four in zip(once, fourfold, strict=True):
        torch.testing.assert_close(one * 4, four)


def test_a_second_backward_is_refused_with_advice() -> None:
    case = make_case(FEATURES["plain"])
    out = loss_of(case)
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="fused_per_token"):
        out.loss.backward()


def test_logits_given_and_logits_made_are_the_same_teacher() -> None:
    case = make_case(FEATURES["bias"])
    target = case.target
    assert isinstance(target, HiddenTarget)
    given_target = LogitsTarget(logits=scores_of(target.hidden, target.head), labels=target.labels)
    for made, given_ in zip(
        fused(case, FORWARD_KL)[1],
        fused(replace(case, target=given_target), FORWARD_KL)[1],
        strict=True,
    ):
        torch.testing.assert_close(made, given_)


def test_rows_behind_the_real_entries_change_nothing_and_learn_nothing() -> None:
    case = make_case(FEATURES["num_real"])
    values, gradients = fused(case, FORWARD_KL)
    with torch.no_grad():
        case.head.weight[40:] += 100
    target = case.target
    assert isinstance(target, HiddenTarget)
    target.head.weight[40:] -= 50
    shifted_values, shifted = fused(case, FORWARD_KL)
    torch.testing.assert_close(values, shifted_values)
    torch.testing.assert_close(gradients, shifted)
    assert (gradients[1][40:] == 0).all()
    assert (gradients[2][40:] == 0).all()


@every_kind
def test_per_token_values_take_any_upstream_gradient(settings: Mapping[str, Any]) -> None:
    objective = objective_of(settings)
    case = in_dtype(make_case(FEATURES["softcap"]), torch.float64)
    values = fused_per_token(
        case.hidden, case.head, case.target, objective, options=FusedOptions(tile_tokens=5)
    )
    true_values, true_gradients = plain(case, objective)
    torch.testing.assert_close(values.detach(), true_values, rtol=1e-10, atol=1e-12)
    clipped = (values * case.weights).sum()
    for got, true in zip(torch.autograd.grad(clipped, case.leaves()), true_gradients, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("move", "t"),
    [
        (NoMove(), None),
        (Taid(), 0.3),
        (Taid(), torch.linspace(0, 1, 13, dtype=torch.float64)),
        (Budget(nats=0.2), None),
        (Tempered(teacher_temperature=0.7), None),
    ],
    ids=["none", "taid", "taid by token", "budget", "tempered"],
)
@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "concrete_score"])
def test_a_moved_target_is_learned_as_if_it_were_the_teacher(move: Any, t: Any, kind: str) -> None:
    objective = objective_of({"kind": kind})
    case = in_dtype(make_case(FEATURES["bias"]), torch.float64)
    target = case.target
    assert isinstance(target, HiddenTarget)
    with torch.no_grad():
        student = scores_of(case.hidden, case.head)
        moved = move.moved(student, scores_of(target.hidden, target.head), t=t)
    there = replace(case, target=LogitsTarget(logits=moved, labels=target.labels))
    true_values, true_gradients = plain(there, objective)
    values, gradients = fused(case, objective, move=move, t=t, tile_tokens=5)
    torch.testing.assert_close(values, true_values, rtol=1e-8, atol=1e-10)
    for got, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "concrete_score", "todi"])
def test_entries_ruled_out_on_the_teachers_side_follow_the_definition(kind: str) -> None:
    objective = objective_of({"kind": kind})
    case = in_dtype(make_case(FEATURES["plain"]), torch.float64)
    logits = torch.randn(13, 51, dtype=torch.float64)
    logits[3, 5:] = -torch.inf
    there = replace(case, target=LogitsTarget(logits=logits))
    values, _ = fused(there, objective, tile_tokens=4)
    torch.testing.assert_close(values, plain(there, objective)[0], rtol=1e-10, atol=1e-12)


@every_kind
def test_scores_ten_thousand_apart_stay_finite(settings: Mapping[str, Any]) -> None:
    objective = objective_of(settings)
    case = make_case(FEATURES["plain"])
    logits = torch.zeros(13, 51)
    logits[:, 7] = 1e4
    there = replace(case, target=LogitsTarget(logits=logits, labels=torch.full((13,), 7)))
    values, gradients = fused(there, objective)
    assert values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_constant_added_to_either_sides_scores_changes_nothing() -> None:
    case = in_dtype(make_case(FEATURES["bias"]), torch.float64)
    values, gradients = fused(case, FORWARD_KL)
    with torch.no_grad():
        case.head.bias.add_(30)
    target = case.target
    assert isinstance(target, HiddenTarget)
    target.head.bias.sub_(70)
    shifted_values, shifted = fused(case, FORWARD_KL)
    torch.testing.assert_close(values, shifted_values)
    torch.testing.assert_close(gradients, shifted)


@every_kind
def test_equal_sides_have_no_loss_and_no_gradient(settings: Mapping[str, Any]) -> None:
    if settings["kind"] in ("cross_entropy", "policy_gradient", "weighted_sum"):
        pytest.skip("not a divergence")
    case = make_case(FEATURES["plain"])
    head = Head(weight=case.head.weight.detach().clone())
    labels = torch.arange(13)
    same = HiddenTarget(hidden=case.hidden.detach().clone(), head=head, labels=labels)
    values, gradients = fused(replace(case, target=same), objective_of(settings))
    torch.testing.assert_close(values, torch.zeros(13), rtol=0, atol=1e-6)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


def test_exact_logits_agree_with_split_ones() -> None:
    case = make_case(FEATURES["plain"], dtype=torch.bfloat16)
    reference = exact(case, FORWARD_KL)[0]
    for logits in ("fp32", "split"):
        values = fused(case, FORWARD_KL, logits=logits)[0]
        torch.testing.assert_close(values.double(), reference, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("logits", ["native", "split", "fp32"])
def test_a_vocabulary_of_several_slabs_is_put_together_right(logits: str) -> None:
    case = make_case(
        Features(bias=True, student_rows=7), dtype=torch.bfloat16, num_tokens=9, num_entries=5001
    )
    values, gradients = fused(case, FORWARD_KL, tile_tokens=4, logits=logits)
    true_values, true_gradients = exact(case, FORWARD_KL)
    assert error(values, true_values) < 5e-3
    for got, true in zip(gradients, true_gradients, strict=True):
        assert error(got, true) < 2e-2


def test_many_tiles_add_up_in_fp32() -> None:
    case = make_case(FEATURES["plain"], dtype=torch.bfloat16, num_tokens=256)
    _, true = exact(case, FORWARD_KL)
    _, cut = fused(case, FORWARD_KL, tile_tokens=1, logits="fp32")
    _, whole = fused(case, FORWARD_KL, tile_tokens=256, logits="fp32")
    assert error(cut[1], true[1]) < 1.3 * error(whole[1], true[1])
