# pyright: basic, reportAttributeAccessIssue=false
"""The fused loss as autograd sees it."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tutelage.core.targets import Head, PartialTarget, SameVocabularyTarget
from tutelage.objectives.fused.driver import (
    Block,
    BlockFunction,
    Problem,
    Wanted,
    differentiate,
    evaluate,
)
from tutelage.objectives.fused.options import FusedLoss, FusedOptions
from tutelage.objectives.fused.scores import real_entries
from tutelage.objectives.objective import Objective
from tutelage.objectives.partial import partial_rows, refuse, rows_of_target

_DEFAULTS = FusedOptions()


def fused_loss(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    target: SameVocabularyTarget,
    objective: Objective,
    *,
    token_weights: Float[Tensor, " N"],
    options: FusedOptions = _DEFAULTS,
) -> FusedLoss:
    """The weighted loss of N tokens from hidden states and heads, without their logits.

        loss = sum_n token_weights[n] * objective(student scores[n], teacher scores[n])

    Gradients to the student's hidden states, head weight and head bias are made in the forward
    pass, while the scores of a tile are there, so nothing is computed twice and memory does not
    grow with N. Nothing reaches the teacher. A weight of 0 contributes exactly 0 to loss and
    gradients, whatever its row holds; no tokens, or no weight, give a differentiable 0.
    """
    call = _Call(student_head, target, objective, options, token_weights.detach())
    loss, per_token = _Loss.apply(call, student_hidden, student_head.weight, student_head.bias)
    return FusedLoss(loss=loss, per_token=per_token)


def fused_per_token(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    target: SameVocabularyTarget,
    objective: Objective,
    *,
    options: FusedOptions = _DEFAULTS,
) -> Float[Tensor, " N"]:
    """Nats of each token, differentiable whatever is done with them afterwards.

    The backward pass makes the scores a second time (two more matmuls than `fused_loss`),
    because the tokens' weights are known only then.
    """
    call = _Call(student_head, target, objective, options)
    return _PerToken.apply(call, student_hidden, student_head.weight, student_head.bias)


@final
@dataclass(frozen=True)
class _Call:
    """All that autograd need not see."""

    head: Head
    target: SameVocabularyTarget
    objective: Objective
    options: FusedOptions
    token_weights: Tensor | None = None

    def problem(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Problem:
        return Problem(
            student_hidden=hidden.detach(),
            student_head=replace(
                self.head, weight=weight.detach(), bias=None if bias is None else bias.detach()
            ),
            target=self.target,
            options=self.options,
        )

    @property
    def rows(self) -> BlockFunction:
        """What is done with each block; each kind of answer has its own way."""
        target, objective = self.target, self.objective
        if isinstance(target, PartialTarget):
            refuse(objective, target, real_entries(self.head))

            def partly(block: Block) -> Tensor:
                some = rows_of_target(target, block.at)
                return partial_rows(block.student, some, objective, block.labels)

            return partly

        def wholly(block: Block) -> Tensor:
            assert block.teacher is not None  # noqa: S101  whole answers have scores
            return objective.rows(block.student, block.teacher, block.labels)

        return wholly


def _wanted(ctx: FunctionCtx) -> Wanted:
    _, hidden, weight, bias = ctx.needs_input_grad
    return Wanted(hidden=hidden, weight=weight, bias=bias)


def _weighted_sum(per_token: Float[Tensor, " N"], weights: Float[Tensor, " N"]) -> Tensor:
    products = per_token.double() * weights.double()
    return torch.where(weights != 0, products, 0.0).sum().to(per_token.dtype)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, call: _Call, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert call.token_weights is not None  # noqa: S101  fused_loss always gives them
        problem, wanted = call.problem(hidden, weight, bias), _wanted(ctx)
        ctx.gradients = None
        if wanted.any:
            per_token, ctx.gradients = differentiate(problem, call.rows, call.token_weights, wanted)
        else:
            per_token = evaluate(problem, call.rows)
        ctx.mark_non_differentiable(per_token)
        return _weighted_sum(per_token, call.token_weights), per_token

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            message = (
                "The fused loss was differentiated a second time; its gradients are made in the "
                "forward pass and handed out once. Add up all that depends on the loss and call "
                "backward once, or use fused_per_token."
            )
            raise RuntimeError(message)
        made = (ctx.gradients.hidden, ctx.gradients.weight, ctx.gradients.bias)
        ctx.gradients = None
        # Asking a GPU for the number would stop it; a pass over the gradients does not.
        if upstream.is_cuda or float(upstream) != 1:
            for gradient in made:
                if gradient is not None:
                    gradient.mul_(upstream)
        return None, *made


class _PerToken(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, call: _Call, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(hidden, weight, bias)  # pyright: ignore[reportArgumentType]  None is fine
        return evaluate(call.problem(hidden, weight, bias), call.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        problem = ctx.call.problem(*ctx.saved_tensors)
        _, made = differentiate(problem, ctx.call.rows, upstream, _wanted(ctx))
        return None, made.hidden, made.weight, made.bias
