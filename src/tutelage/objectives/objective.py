"""What an objective is: settings that turn two models' scores into nats per position.

An objective owns its temperature and nothing that changes. Masks, means, clocks and moved targets
are other people's work: see `reduce.py` and `moved_targets.py`.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.settings import Settings
from tutelage.core.targets import LogitsTarget


class Objective(Settings, ABC):
    """One member of the union that `objectives.from_settings` reads, told apart by `kind`."""

    kind: str

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
        labels: Int[Tensor, "R"] | None,
    ) -> Float[Tensor, "R"]:
        """Value and gradient of a few rows, in place: the kernel of the fused path.

        Both tensors are fp32 (or fp64) scratch that the kernel may destroy. On return
        `student_logits` holds d value / d student_logits, row by row.

        This default differentiates `from_logits`; objectives override it with row arithmetic.
        """
        raise AssertionError  # replaced by the real default in the objectives room

    def per_token(
        self, student_logits: Float[Tensor, "*at V"], target: LogitsTarget
    ) -> Float[Tensor, "*at"]:
        """Nats per position, differentiable in the student's logits."""
        raise AssertionError  # replaced by the real one in the objectives room
