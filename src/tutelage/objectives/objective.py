"""What an objective is: settings that turn two models' scores into nats per position.

An objective owns its temperature and nothing that changes. Masks, means, clocks and moved targets
are other people's work: see `reduce.py` and `moved_targets.py`.
"""

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.settings import Settings
from tutelage.core.targets import LogitsTarget
from tutelage.objectives.row_kernels import all_finite
from tutelage.objectives.softmax import common_size, log_softmax_at, upcast


class Objective(Settings, ABC):
    """One member of the union that `objectives.from_settings` reads, told apart by its `kind`."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it looks at a teacher at all, or at the completions' own tokens only."""
        return True

    @abstractmethod
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """The definition in plain differentiable PyTorch: nats per position, fp32 or better.

        Both sides are raw scores over the same V entries; -inf marks entries that are ruled out.
        The teacher's side carries no gradient.
        """

    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows, in place: the kernel of the fused path.

        Both tensors are fp32 (or fp64) scratch that the kernel may destroy. On return
        `student_logits` holds d value / d student_logits, row by row.

        This default differentiates `from_logits`; objectives override it with row arithmetic.
        """
        with torch.enable_grad():
            scores = student_logits.detach().clone().requires_grad_()
            values = self.from_logits(scores, teacher_logits.detach(), labels)
            (gradient,) = torch.autograd.grad(values.sum(), scores)
        student_logits.copy_(gradient)
        return values.detach()

    def on_average(self) -> "Objective":
        """The objective whose gradient this one's is, on average over tokens the student drew.

        Itself, unless it looks at the one token that was drawn.
        """
        return self

    def per_token(
        self, student_logits: Float[Tensor, "*at V"], target: LogitsTarget
    ) -> Float[Tensor, "*at"]:
        """Nats per position, differentiable in the student's logits.

        Raises:
            DataError: the target is for other positions than the student's.
        """
        if target.logits.shape[:-1] != student_logits.shape[:-1]:
            raise DataError(
                f"The target is for positions of shape {tuple(target.logits.shape[:-1])}; it must "
                f"be the student's {tuple(student_logits.shape[:-1])}. "
                "Score the same batch with both."
            )
        num_common = common_size(student_logits.shape[-1], target.logits.shape[-1], target.num_real)
        return self.from_logits(
            upcast(student_logits[..., :num_common]),
            upcast(target.logits.detach()[..., :num_common]),
            target.labels,
        )


class Divergence(Objective, ABC):
    """An objective that sees nothing but the two next-token distributions, at a temperature."""

    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides both models' logits. Above 1, the teacher's unlikely tokens count for more."""

    scale_by_t2: bool = False
    """Multiply by temperature squared, so that gradients keep their size when it changes. Off,
    the loss is the divergence itself, in nats, as in TRL and Liger; DistillKit and ModelOpt
    multiply."""

    @abstractmethod
    def divergence(
        self, student_logp: Float[Tensor, "*at V"], teacher_logp: Float[Tensor, "*at V"]
    ) -> Float[Tensor, "*at"]:
        """The divergence of two normalised distributions, in nats, differentiable."""

    def divergence_rows(
        self, student_scores: Float[Tensor, "R V"], teacher_scores: Float[Tensor, "R V"]
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows of finite scores (logits / temperature), in place.

        On return `student_scores` holds the gradient; `teacher_scores` may be destroyed.

        This default differentiates `divergence`; subclasses override it with row arithmetic.
        """
        with torch.enable_grad():
            scores = student_scores.detach().clone().requires_grad_()
            values = self.divergence(
                scores.log_softmax(dim=-1), teacher_scores.detach().log_softmax(dim=-1)
            )
            (gradient,) = torch.autograd.grad(values.sum(), scores)
        student_scores.copy_(gradient)
        return values.detach()

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """The divergence at the temperature; labels play no part."""
        values = self.divergence(
            log_softmax_at(student_logits, self.temperature),
            log_softmax_at(teacher_logits, self.temperature),
        )
        return values * self.temperature**2 if self.scale_by_t2 else values

    @override
    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows, in place, by `divergence_rows`.

        Rows with an entry that is ruled out, or with a NaN, go by the definition itself.
        """
        if not all_finite(student_logits, teacher_logits):
            return super().rows(student_logits, teacher_logits, labels)
        if self.temperature == 1:
            return self.divergence_rows(student_logits, teacher_logits)
        student_logits.div_(self.temperature)
        teacher_logits.div_(self.temperature)
        values = self.divergence_rows(student_logits, teacher_logits)
        # The chain rule takes one factor of the temperature, scale_by_t2 gives two.
        student_logits.mul_(self.temperature if self.scale_by_t2 else 1 / self.temperature)
        return values * self.temperature**2 if self.scale_by_t2 else values
