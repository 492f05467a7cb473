"""Every policy against its definition: value and gradient, clips, and what is held still."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.objectives.policies import definitions
from tests.objectives.policies.definitions import (
    Rows,
    made_up,
    mean_over_rows,
    mean_over_tokens,
)
from tutelage.core.errors import ConfigError
from tutelage.objectives.policies import (
    DrawnTokens,
    DrGrpo,
    Gmpo,
    Grpo,
    Gspo,
    Policy,
    PolicySettings,
    PrGrpo,
    Rspo,
    log_router_drift,
)

DEFINED: dict[str, tuple[Policy, Callable[[Rows], list[Tensor]]]] = {
    "grpo": (Grpo(), definitions.grpo),
    "grpo, uneven": (
        Grpo(clip_low=0.1, clip_high=0.28),
        lambda rows: definitions.grpo(rows, low=0.1, high=0.28),
    ),
    "pr_grpo": (PrGrpo(), definitions.pr_grpo),
    "pr_grpo, strong": (
        PrGrpo(suppression=2.0),
        lambda rows: definitions.pr_grpo(rows, suppression=2.0),
    ),
    "gspo": (Gspo(), definitions.gspo),
    "gspo, wide": (
        Gspo(clip_low=0.1, clip_high=0.2),
        lambda rows: definitions.gspo(rows, low=0.1, high=0.2),
    ),
    "gmpo": (Gmpo(), definitions.gmpo),
    "rspo": (Rspo(), lambda rows: definitions.rspo(rows, before=True)),
    "rspo, v1": (
        Rspo(shrink="after_clip", clip=0.2),
        lambda rows: definitions.rspo(rows, clip=0.2, before=False),
    ),
}


def mean_and_slopes(policy: Policy, tokens: DrawnTokens, reduction: Any) -> tuple[Tensor, Tensor]:
    """The step's J, and its derivative by each token's log-probability."""
    found = policy.surrogate(tokens)
    weights = policy.token_weights(
        tokens.loss_mask,
        tokens.row_of,
        reduction=reduction,
        num_tokens=len(tokens.row_of),
        num_rows=int(tokens.row_of.max()) + 1,
    ).double()
    return (weights * found.value).sum(), weights * found.slope


def one_row(ratios: list[float], advantage: float, drift: float = 0.0) -> DrawnTokens:
    size = len(ratios)
    return DrawnTokens(
        logp=torch.tensor(ratios, dtype=torch.float64).log(),
        old_logp=torch.zeros(size, dtype=torch.float64),
        advantages=torch.full((size,), advantage, dtype=torch.float64),
        loss_mask=torch.ones(size, dtype=torch.bool),
        row_of=torch.zeros(size, dtype=torch.long),
        drift=torch.full((size,), drift, dtype=torch.float64),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", DEFINED)
def test_value_and_gradient_are_those_of_the_definition(name: str, seed: int) -> None:
    policy, defined = DEFINED[name]
    rows = made_up(seed=seed)
    expected = mean_over_rows(defined(rows))
    gradient = torch.cat(torch.autograd.grad(expected, rows.logp))
    value, slopes = mean_and_slopes(policy, rows.tokens, "sequence_mean")
    # Weights are made in float32, as everywhere.
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(slopes, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["grpo", "grpo, uneven", "pr_grpo", "pr_grpo, strong"])
def test_a_token_mean_is_daposs(name: str) -> None:
    policy, defined = DEFINED[name]
    rows = made_up()
    expected = mean_over_tokens(defined(rows))
    gradient = torch.cat(torch.autograd.grad(expected, rows.logp))
    value, slopes = mean_and_slopes(policy, rows.tokens, "token_mean")
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(slopes, gradient, rtol=1e-6, atol=1e-8)
    assert not torch.isclose(value, mean_over_rows(defined(rows)).detach())


def test_dr_grpo_divides_by_one_constant_whatever_the_reduction() -> None:
    rows = made_up()
    expected = torch.cat(definitions.grpo(rows)).sum() / (8 * 20)
    gradient = torch.cat(torch.autograd.grad(expected, rows.logp))
    for reduction in ("token_mean", "sequence_mean"):
        value, slopes = mean_and_slopes(DrGrpo(length=20), rows.tokens, reduction)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(slopes, gradient, rtol=1e-6, atol=1e-8)
    with pytest.raises(ConfigError, match=r"policy\.length is null"):
        mean_and_slopes(DrGrpo(), rows.tokens, "token_mean")


@pytest.mark.parametrize("name", DEFINED)
def test_at_a_ratio_of_one_every_policy_is_the_plain_policy_gradient(name: str) -> None:
    tokens = made_up(spread=0.0).tokens
    policy = DEFINED[name][0]
    still = DrawnTokens(
        logp=tokens.old_logp,
        old_logp=tokens.old_logp,
        advantages=tokens.advantages,
        loss_mask=tokens.loss_mask,
        row_of=tokens.row_of,
        drift=torch.zeros_like(tokens.logp),
    )
    found = policy.surrogate(still)
    assert torch.equal(found.ratio, torch.ones_like(found.ratio))
    assert torch.equal(found.slope, tokens.advantages)
    assert torch.equal(found.value, tokens.advantages)
    assert not found.clipped.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.1, 1.0, 1.1, 1.1),
        (1.3, 1.0, 1.2, 0.0),
        (0.5, 1.0, 0.5, 0.5),
        (0.9, -1.0, -0.9, -0.9),
        (0.7, -1.0, -0.8, 0.0),
        (1.9, -1.0, -1.9, -1.9),
        (1.9, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_holds_only_what_would_raise_j(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    found = Grpo().surrogate(one_row([ratio], advantage))
    assert float(found.value) == pytest.approx(value)
    assert float(found.slope) == pytest.approx(slope)
    assert bool(found.clipped) == (slope == 0 and advantage != 0)


@pytest.mark.parametrize(
    ("suppression", "advantages", "drift"),
    [(0.0, "all", "any"), (0.1, "good", "any"), (0.1, "all", "none")],
)
def test_without_suppression_or_bad_completions_or_shift_it_is_grpo_bit_for_bit(
    suppression: float, advantages: str, drift: str
) -> None:
    tokens = made_up(seed=5).tokens
    signs = tokens.advantages.abs() if advantages == "good" else tokens.advantages
    shift = tokens.drift if drift == "any" else torch.zeros_like(tokens.logp)
    for dtype in (torch.float32, torch.float64):
        same = DrawnTokens(
            logp=tokens.logp.to(dtype),
            old_logp=tokens.old_logp.to(dtype),
            advantages=signs.to(dtype),
            loss_mask=tokens.loss_mask,
            row_of=tokens.row_of,
            drift=None if shift is None else shift.to(dtype),
        )
        suppressed, plain = PrGrpo(suppression=suppression).surrogate(same), Grpo().surrogate(same)
        assert torch.equal(suppressed.value, plain.value)
        assert torch.equal(suppressed.slope, plain.slope)


def test_a_shift_takes_its_part_of_a_bad_completions_gradient_inside_the_band_only() -> None:
    factor = math.exp(-0.1 * 0.35)
    bad = PrGrpo().surrogate(one_row([1.0, 0.82, 1.4], -1.0, drift=0.35))
    assert bad.slope[0] == pytest.approx(-factor)
    # The suppressed ratio leaves the band at the bottom, where the clip holds it.
    assert float(bad.slope[1]) == 0
    assert bad.value[1] == pytest.approx(-0.8)
    assert bad.slope[2] == pytest.approx(-1.4 * factor)
    good = one_row([1.0, 0.82, 1.4], 1.0, drift=0.35)
    assert torch.equal(PrGrpo().surrogate(good).slope, Grpo().surrogate(good).slope)


def test_nothing_flows_into_the_shift_which_would_be_raised_on_bad_completions() -> None:
    tokens = one_row([0.95, 1.05], -1.0)
    drift = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
    leaky = (tokens.log_ratio.exp() * torch.exp(-0.1 * drift) * tokens.advantages).sum()
    assert bool((torch.autograd.grad(leaky, drift)[0] > 0).all())
    held = DrawnTokens(
        logp=tokens.logp,
        old_logp=tokens.old_logp,
        advantages=tokens.advantages,
        loss_mask=tokens.loss_mask,
        row_of=tokens.row_of,
        drift=drift,
    )
    for policy in (PrGrpo(), Rspo()):
        found = policy.surrogate(held)
        assert not found.value.requires_grad
        assert not found.slope.requires_grad


def test_rspo_with_a_floor_of_one_is_gmpo_and_its_floor_bounds_what_drift_can_take() -> None:
    tokens = made_up().tokens
    assert torch.equal(Rspo(lowest=1.0).surrogate(tokens).slope, Gmpo().surrogate(tokens).slope)
    far = Rspo(shrink="after_clip").surrogate(one_row([1.0, 1.0], 1.0, drift=50.0))
    assert far.value.tolist() == pytest.approx([0.8, 0.8])


def test_the_two_versions_of_rspo_differ_where_a_clip_bites() -> None:
    tokens = one_row([1.6, 1.0], 1.0, drift=0.2)
    first, second = (Rspo(shrink=when).surrogate(tokens) for when in ("after_clip", "before_clip"))
    assert first.clipped.tolist() == [True, False]
    assert second.clipped.tolist() == [False, False]


def test_tokens_that_are_not_trained_are_in_no_ratio_of_their_row() -> None:
    tokens = made_up().tokens
    mask = torch.ones_like(tokens.loss_mask)
    mask[6] = False
    logp = tokens.logp.clone()
    logp[6] = math.nan
    for policy in (Gspo(), Gmpo(), Grpo()):
        found = policy.surrogate(
            DrawnTokens(
                logp=logp,
                old_logp=tokens.old_logp,
                advantages=tokens.advantages,
                loss_mask=mask,
                row_of=tokens.row_of,
            )
        )
        assert found.value.isfinite().all()
        assert found.slope.isfinite().all()


def test_the_drift_of_old_experts_is_a_mean_of_log_ratios() -> None:
    old = [torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.6, 0.3]])]
    new = [torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([[0.1, 0.6, 0.3]])]
    chosen = [torch.tensor([[0, 1]]), torch.tensor([[1, 2]])]
    drift = log_router_drift(new, old, chosen)
    assert float(drift) == pytest.approx((math.log(0.5 / 0.4) + 0) / 2 / 2)
    assert float(log_router_drift(old, old, chosen)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "grpo", "clip_low": 0},
        {"kind": "grpo", "clip_low": 1.5},
        {"kind": "grpo", "clip_high": -1},
        {"kind": "grpo", "suppression": 0.1},
        {"kind": "pr_grpo", "suppression": -0.1},
        {"kind": "rspo", "lowest": 0},
        {"kind": "rspo", "lowest": 1.01},
        {"kind": "rspo", "shrink": "sometimes"},
        {"kind": "dr_grpo", "length": 0},
        {"kind": "gmpo", "clip": 0},
        {"kind": "grpo", "distill_weight": 0},
        {"kind": "grpo", "distill": "worst"},
        {"kind": "ppo"},
    ],
)
def test_a_setting_that_makes_no_sense_cannot_be_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PolicySettings).validate_python(wrong)
