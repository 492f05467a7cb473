"""Partial targets in the fused path: its values and gradients are those of the definitions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.fused.problems import (
    FEATURES,
    KINDS,
    Case,
    Features,
    fused,
    in_dtype,
    make_case,
    name_of,
    plain,
    scores_of,
)
from tests.objectives.fused.test_memory import LargestTensor
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.targets import HiddenTarget, PartialTarget, Rest, SampledTarget, TopKTarget
from tutelage.objectives import Divergence, Objective, Taid, from_settings, refusal
from tutelage.objectives.fused import FusedOptions, fused_loss
from tutelage.objectives.partial import partial_per_token
from tutelage.objectives.plain import plain_per_token

MORE: list[Mapping[str, Any]] = [
    {"kind": "concrete_score", "weights": ("teacher", "teacher"), "weight_temperature": 1.4},
    {"kind": "concrete_score", "mixture": 1.0},
    {"kind": "forward_kl", "temperature": 0.6},
    {
        "kind": "weighted_sum",
        "parts": [
            {"weight": 0.3, "objective": {"kind": "forward_kl"}},
            {"weight": 2.0, "objective": {"kind": "cross_entropy"}},
            {"weight": 0.5, "objective": {"kind": "cross_entropy", "labels": "teacher"}},
        ],
    },
]


def temperature_of(objective: Objective) -> float:
    return objective.temperature if isinstance(objective, Divergence) else 1.0


def teacher_logp(case: Case, temperature: float) -> Tensor:
    """Over the real entries that both sides have."""
    t = case.target
    assert isinstance(t, HiddenTarget)
    reals = (case.head.num_real, t.head.num_real, len(case.head.weight), len(t.head.weight))
    shared = min(real for real in reals if real is not None)
    return (scores_of(t.hidden, t.head)[:, :shared] / temperature).log_softmax(-1)


def top_k(case: Case, k: int, temperature: float, rest: Rest | None = None) -> TopKTarget:
    logp = teacher_logp(case, temperature)
    kept, ids = logp.topk(k)
    tail = logp.scatter(1, ids, -torch.inf).logsumexp(-1)
    return TopKTarget(
        ids=ids,
        logp=kept,
        tail_logp=tail,
        labels=case.target.labels,
        temperature=temperature,
        num_real=logp.shape[1],
        rest=rest,
    )


def sampled(case: Case, temperature: float, num: int = 6) -> SampledTarget:
    logp = teacher_logp(case, temperature)
    draws = torch.multinomial(
        logp.exp(), num, replacement=True, generator=torch.Generator().manual_seed(4)
    )
    return SampledTarget(
        ids=draws,
        weights=torch.rand(draws.shape, generator=torch.Generator().manual_seed(5)).to(logp.dtype),
        labels=case.target.labels,
        entropy=-(logp.exp() * logp).sum(-1),
        temperature=temperature,
        num_real=logp.shape[1],
    )


def defined(case: Case, target: PartialTarget, objective: Objective) -> list[Tensor]:
    student = scores_of(case.hidden, case.head)[:, : case.head.num_real]
    values = partial_per_token(student, target, objective)
    loss = (values * case.weights.to(values.dtype)).sum()
    return [values.detach(), *torch.autograd.grad(loss, case.leaves())]


def by_tiles(case: Case, target: PartialTarget, objective: Objective) -> list[Tensor]:
    values, gradients = fused(replace(case, target=target), objective, tile_tokens=5)
    return [values, *gradients]


def agree(case: Case, target: PartialTarget, objective: Objective) -> None:
    for got, want in zip(
        by_tiles(case, target, objective), defined(case, target, objective), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def accepted(answer: Any, rest: Rest | None = None) -> list[Mapping[str, Any]]:
    def fits(settings: Mapping[str, Any]) -> bool:
        one = from_settings(settings)
        return refusal(one, answer, temperature=temperature_of(one), rest=rest) is None

    return [settings for settings in [*KINDS, *MORE] if fits(settings)]


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("settings", accepted("top_k"), ids=name_of)
def test_top_k_in_tiles_is_the_definition(settings: Mapping[str, Any], k: int) -> None:
    case = in_dtype(make_case(Features(bias=True)), torch.float64)
    objective = from_settings(settings)
    agree(case, top_k(case, k, temperature_of(objective)), objective)


@pytest.mark.parametrize("settings", accepted("top_k", "renormalised"), ids=name_of)
def test_renormalised_in_tiles_is_the_definition(settings: Mapping[str, Any]) -> None:
    case, objective = in_dtype(make_case(Features()), torch.float64), from_settings(settings)
    agree(case, top_k(case, 5, temperature_of(objective), "renormalised"), objective)


def test_truncated_in_tiles_is_the_definition() -> None:
    case = in_dtype(make_case(Features()), torch.float64)
    agree(case, top_k(case, 5, 1.0, "truncated"), from_settings({"kind": "forward_kl"}))


@pytest.mark.parametrize("settings", accepted("sampled"), ids=name_of)
def test_draws_in_tiles_are_the_definition(settings: Mapping[str, Any]) -> None:
    case, objective = in_dtype(make_case(Features()), torch.float64), from_settings(settings)
    agree(case, sampled(case, temperature_of(objective)), objective)


@pytest.mark.parametrize("features", [f for f in FEATURES.values() if not f.given_logits])
def test_heads_of_every_shape_agree(features: Features) -> None:
    case = in_dtype(make_case(replace(features, tied=False, frozen=False)), torch.float64)
    agree(case, top_k(case, 6, 1.0), from_settings({"kind": "jsd"}))
    agree(case, sampled(case, 1.0), from_settings({"kind": "forward_kl"}))


DENSE = [
    settings
    for settings in accepted("top_k")
    if isinstance(from_settings(settings), Divergence) or settings["kind"] == "cross_entropy"
]


@pytest.mark.parametrize("features", ["plain", "unlike teacher", "wider student"])
@pytest.mark.parametrize("settings", DENSE, ids=name_of)
def test_with_every_entry_kept_it_is_the_whole_divergence(
    settings: Mapping[str, Any], features: str
) -> None:
    case = in_dtype(make_case(FEATURES[features]), torch.float64)
    objective = from_settings(settings)
    temperature = temperature_of(objective)
    target = top_k(case, teacher_logp(case, temperature).shape[1], temperature)
    values, gradients = plain(case, objective)
    for got, want in zip(by_tiles(case, target, objective), [values, *gradients], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def test_concrete_score_on_top_k_is_that_of_the_kept_entries_renormalised() -> None:
    case = in_dtype(make_case(Features()), torch.float64)
    objective = from_settings({"kind": "concrete_score", "weights": ("teacher", "teacher")})
    target = top_k(case, 6, 1.0)
    kept = scores_of(case.hidden, case.head).gather(1, target.ids)
    whole = scores_of(case.target.hidden, case.target.head).gather(1, target.ids)
    values, *_ = by_tiles(case, target, objective)
    torch.testing.assert_close(values, objective.from_logits(kept, whole).detach())


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient_at_any_temperature() -> None:
    """What re-tempering a cached tail as one symbol gets wrong (pitfall B23)."""
    for temperature in (0.7, 1.0, 2.0):
        case = in_dtype(make_case(Features(uneven_weights=False)), torch.float64)
        same = HiddenTarget(
            hidden=case.hidden.detach(),
            head=replace(case.head, weight=case.head.weight.detach()),
            labels=case.target.labels,
        )
        case = replace(case, target=same)
        objective = from_settings({"kind": "forward_kl", "temperature": temperature})
        values, *gradients = by_tiles(case, top_k(case, 4, temperature), objective)
        assert values.abs().max() < 1e-12
        assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


def test_the_tail_bucket_keeps_value_and_gradient_in_single_precision_too() -> None:
    """A truncated sum goes negative, and a clamp at 0 would kill its gradient (pitfall B21)."""
    case = make_case(Features(), num_tokens=40)
    for k in (1, 3, 20, 50):
        whole, _ = fused(case, from_settings({"kind": "forward_kl"}))
        values, gradients = fused(
            replace(case, target=top_k(case, k, 1.0)), from_settings({"kind": "forward_kl"})
        )
        assert (values >= -1e-6).all()
        assert (values <= whole + 1e-5).all()
        assert gradients[0].abs().amax(-1).min() > 0


def test_draws_have_the_divergence_and_its_gradient_as_their_mean() -> None:
    case = in_dtype(make_case(Features(), num_tokens=4, num_entries=9), torch.float64)
    objective = from_settings({"kind": "forward_kl", "temperature": 1.7, "scale_by_t2": True})
    want = fused(case, objective)
    logp = teacher_logp(case, 1.7)
    total = [torch.zeros_like(part) for part in (want[0], *want[1])]
    # One draw a position: every entry in turn, weighed by its probability, is the exact mean.
    for entry in range(9):
        ones = {"ids": torch.full((4, 1), entry), "weights": torch.ones(4, 1).double()}
        p = logp[:, entry].exp()
        drawn = replace(case, target=replace(sampled(case, 1.7), **ones), weights=case.weights * p)
        values, gradients = fused(drawn, objective)
        parts = (p * values, *gradients)
        total = [so_far + part for so_far, part in zip(total, parts, strict=True)]
    for got, part in zip(total, (want[0], *want[1]), strict=True):
        torch.testing.assert_close(got, part)


def test_what_cannot_be_learned_is_refused_with_the_reason() -> None:
    case = make_case(Features())
    target = replace(case, target=top_k(case, 3, 1.0))
    with pytest.raises(ConfigError, match="concrete_score on a top-k answer"):
        fused(target, from_settings({"kind": "concrete_score"}))
    with pytest.raises(ConfigError, match="it must be 1 for a top-k target"):
        fused(target, from_settings({"kind": "forward_kl", "temperature": 2.0}))
    with pytest.raises(ConfigError, match="a target is moved over all entries"):
        fused(target, from_settings({"kind": "forward_kl"}), move=Taid(), t=0.5)
    with pytest.raises(ConfigError, match="a target is moved over all entries"):
        plain_per_token(
            case.hidden,
            case.head,
            target.target,
            from_settings({"kind": "forward_kl"}),
            FusedOptions(move=Taid(), t=0.5),
        )
    narrow = replace(make_case(Features(student_rows=-4)), target=top_k(case, 3, 1.0))
    with pytest.raises(DataError, match="over 51 entries of the vocabulary and the student shares"):
        fused(narrow, from_settings({"kind": "forward_kl"}))
    drawn = replace(case, target=replace(sampled(case, 1.0), entropy=None))
    with pytest.raises(DataError, match="without the teacher's entropy"):
        fused(drawn, from_settings({"kind": "forward_kl"}))


def test_nothing_reaches_the_teacher_and_a_weight_of_nothing_is_nothing() -> None:
    case = make_case(Features())
    logp = teacher_logp(case, 1.0)
    kept, ids = logp.topk(4)
    kept = kept.detach().requires_grad_()
    weights = case.weights.clone()
    weights[3] = 0
    hidden = case.hidden.detach().clone()
    hidden[3] = torch.nan
    hidden.requires_grad_()
    out = fused_loss(
        hidden,
        case.head,
        TopKTarget(ids=ids, logp=kept),
        from_settings({"kind": "forward_kl"}),
        token_weights=weights,
    )
    out.loss.backward()
    assert kept.grad is None
    assert out.loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad[3].abs().max() == 0


@pytest.mark.parametrize("answer", ["top_k", "sampled"])
def test_memory_does_not_grow_with_the_tokens(answer: str) -> None:
    largest = {}
    for num_tokens in (64, 256):
        case = make_case(Features(), num_tokens=num_tokens, num_entries=300)
        target = top_k(case, 8, 1.0) if answer == "top_k" else sampled(case, 1.0)
        with LargestTensor() as seen:
            out = fused_loss(
                case.hidden,
                case.head,
                target,
                from_settings({"kind": "forward_kl"}),
                token_weights=case.weights,
                options=FusedOptions(tile_tokens=16),
            )
            out.loss.backward()
        largest[num_tokens] = seen.numel
    # A tile of scores, or the head's own gradient.
    assert largest[64] == largest[256] == 16 * 300
