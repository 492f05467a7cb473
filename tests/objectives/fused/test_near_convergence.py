"""Where the student is nearly the teacher, rounded logits ruin the gradient; split ones do not."""

import pytest
import torch
from torch.nn import functional

from tests.objectives.fused.problems import error, objective_of
from tutelage.core.targets import Head, HiddenTarget
from tutelage.objectives.fused import FusedOptions, fused_loss

WIDTH, ENTRIES, TOKENS = 64, 2000, 48
HALVES = [torch.bfloat16, torch.float16]


def nearly_equal(
    noise: float, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, Head, HiddenTarget]:
    hidden = torch.randn(TOKENS, WIDTH).to(dtype)
    weight = torch.randn(ENTRIES, WIDTH) * 0.3
    student = (weight + noise * torch.randn(ENTRIES, WIDTH)).to(dtype)
    target = HiddenTarget(hidden=hidden, head=Head(weight=weight.to(dtype)))
    return hidden.clone().requires_grad_(), Head(weight=student.requires_grad_()), target


def truth(
    kind: str, noise: float, dtype: torch.dtype = torch.bfloat16
) -> tuple[float, torch.Tensor]:
    torch.manual_seed(1)
    hidden, head, target = nearly_equal(noise, dtype)
    wide = hidden.detach().double().requires_grad_()
    values = objective_of({"kind": kind}).from_logits(
        wide @ head.weight.detach().double().T,
        target.hidden.double() @ target.head.weight.double().T,
    )
    (gradient,) = torch.autograd.grad(values.mean(), wide)
    return float(values.detach().mean()), gradient


def ours(
    kind: str, noise: float, logits: str, dtype: torch.dtype = torch.bfloat16
) -> tuple[float, torch.Tensor]:
    torch.manual_seed(1)
    hidden, head, target = nearly_equal(noise, dtype)
    out = fused_loss(
        hidden,
        head,
        target,
        objective_of({"kind": kind}),
        token_weights=torch.full((TOKENS,), 1 / TOKENS),
        options=FusedOptions(logits=logits),
    )
    (gradient,) = torch.autograd.grad(out.loss, hidden)
    return float(out.loss.detach()), gradient


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "concrete_score"])
@pytest.mark.parametrize("logits", ["auto", "split", "fp32"])
@pytest.mark.parametrize("dtype", HALVES)
def test_exact_logits_keep_the_gradient_near_convergence(
    kind: str, logits: str, dtype: torch.dtype
) -> None:
    for noise in (0.1, 0.01, 0.004):
        value, gradient = truth(kind, noise, dtype)
        got_value, got_gradient = ours(kind, noise, logits, dtype)
        assert got_value == pytest.approx(value, rel=5e-3)
        assert error(got_gradient, gradient) < 5e-3


@pytest.mark.parametrize("dtype", HALVES)
def test_native_logits_do_lose_it(dtype: torch.dtype) -> None:
    _, gradient = truth("forward_kl", 0.004, dtype)
    assert error(ours("forward_kl", 0.004, "native", dtype)[1], gradient) > 0.05


@pytest.mark.parametrize("dtype", HALVES)
def test_auto_is_split_for_bf16_on_a_cpu_that_multiplies_it_and_fp32_elsewhere(
    dtype: torch.dtype,
) -> None:
    fast = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    wanted, other = ("split", "fp32") if fast else ("fp32", "split")
    exactly = ours("forward_kl", 0.004, wanted, dtype)[1]
    assert torch.equal(ours("forward_kl", 0.004, "auto", dtype)[1], exactly)
    # The two do differ in their last bits, so that the line above says something.
    assert not torch.equal(ours("forward_kl", 0.004, other, dtype)[1], exactly)


def test_the_jsd_stays_positive_where_bf16_arithmetic_turns_it_negative() -> None:
    value, _ = truth("jsd", 0.004)
    torch.manual_seed(1)
    hidden, head, target = nearly_equal(0.004)
    student = (hidden @ head.weight.T).log_softmax(-1)
    teacher = (target.hidden @ target.head.weight.T).log_softmax(-1)
    mixture = torch.logsumexp(torch.stack([student, teacher]), dim=0) - torch.log(
        torch.tensor(2.0, dtype=torch.bfloat16)
    )
    halves = [
        functional.kl_div(mixture, side, log_target=True, reduction="none")
        for side in (student, teacher)
    ]
    rounded = float((sum(halves) / 2).sum(-1).mean().detach())
    for logits in ("split", "native"):
        got = ours("jsd", 0.004, logits)[0]
        assert got > 0
        assert abs(got - value) < abs(rounded - value)
    assert ours("jsd", 0.004, "split")[0] == pytest.approx(value, rel=5e-3)
