"""The student as its own teacher: its first weights, an average of them, or what they are now."""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from tutelage.core.errors import CheckpointError, ConfigError, ModelError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import HiddenTarget
from tutelage.models import CausalLM, has_lora, lora_off, moving_weights, plain_copy
from tutelage.teachers.live import LiveTeacher
from tutelage.teachers.reading import Reader
from tutelage.teachers.teacher import Teacher

Weights = Literal["initial", "average", "live"]


@final
class SelfTeacher(Teacher):
    """The student itself behind the teacher's view of each row, borrowed and not copied.

    `live` answers with the weights of the moment. `initial` answers with the adapter off, which is
    the model that the student was before its first step. Whoever was training goes on in the mode
    it was in, with its adapter, also when the answer is an error.

    Args:
        student: the model that is trained.
        weights: which of its weights answer.
        reader: what is known of the vocabulary, the precision and the memory. Only `initial` may
            remember: other weights move.

    Source: Zhao et al. 2026 (OPSD), arXiv:2601.18734, section 3.
    """

    def __init__(
        self,
        student: CausalLM,
        *,
        weights: Literal["initial", "live"],
        reader: Reader | None = None,
    ) -> None:
        self._student = student
        self._weights = weights
        self._reader = reader or Reader()
        if weights == "initial" and not has_lora(student):
            message = (
                "The teacher is the student with its adapter off, and the student is without an "
                "adapter; it must carry one. Add student.lora, or let a frozen copy of the "
                "student teach (LiveTeacher(plain_copy(student)))."
            )
            raise ModelError(message)
        if weights == "live" and self._reader.memory is not None:
            raise _moves("live")

    @override
    def score(self, batch: TokenBatch) -> HiddenTarget:
        with _evaluating(self._student), self._switched():
            return self._reader.read(self._student, batch)

    def _switched(self) -> AbstractContextManager[None]:
        return lora_off(self._student) if self._weights == "initial" else nullcontext()


@final
class AverageTeacher(Teacher):
    """A running average of what the student's weights act as; the trainer moves it as a clock.

        average = decay * average + (1 - decay) * student        after each optimiser step

    It begins as the student's weights of the moment. With an adapter, the matrices that are
    averaged are the products weight + alpha / rank * B @ A: averaging A and B by themselves would
    shrink the product of their averages, from B = 0 on, to (1 - decay**n)**2 of it. Kept in
    float32 or wider, since in bfloat16 a thousandth of a step is lost; what stays as it is, is
    shared with the student.

    Args:
        student: the model that is trained.
        decay: share of the average that each step keeps; 0 is the student one step late.
        reader: what is known of the vocabulary and the precision. It may not remember.

    Source: Tarvainen and Valpola 2017, arXiv:1703.01780; for self-distillation Zhao et al. 2026,
    arXiv:2601.18734.
    """

    def __init__(
        self, student: CausalLM, *, decay: float = 0.999, reader: Reader | None = None
    ) -> None:
        if not 0 <= decay < 1:
            message = f"decay is {decay}; it must be from 0 to below 1. Such as 0.999."
            raise ConfigError(message)
        self._student = student
        self._decay = decay
        self._reader = reader or Reader()
        if self._reader.memory is not None:
            raise _moves("average")
        self._lm = plain_copy(student)
        self._averages: dict[str, Tensor] = {}
        for name, weight in moving_weights(student).items():
            own = self._lm.model.get_parameter(name)
            wide = torch.promote_types(weight.dtype, torch.float32)
            # Where the copy is wide enough, the average is the copy's own weight.
            self._averages[name] = own.data if own.dtype == wide else weight.to(wide, copy=True)

    @override
    def score(self, batch: TokenBatch) -> HiddenTarget:
        return self._reader.read(self._lm.eval(), batch)

    @torch.no_grad()
    def move(self, *, loss: float, step: int) -> None:  # noqa: ARG002  every clock is told
        """Follow the student, once after each optimiser step."""
        for name, weight in moving_weights(self._student).items():
            average = self._averages[name]
            average.lerp_(weight.to(average.dtype), 1 - self._decay)
        self._show()

    def state_dict(self) -> dict[str, Any]:
        """The averages by name, and how they move."""
        return {"decay": self._decay, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, bit for bit.

        Raises:
            CheckpointError: they are averages of another model, or moved at another pace.
        """
        saved: Mapping[str, Tensor] = state["averages"]
        if state["decay"] != self._decay or saved.keys() != self._averages.keys():
            what = "decay" if state["decay"] != self._decay else "set of trained weights"
            message = (
                f"The averaged teacher's {what} is not that of the checkpoint (decay "
                f"{state['decay']}, {len(saved)} weights); it must be, to continue that run. "
                "Restore the settings, or start a new run in another folder."
            )
            raise CheckpointError(message)
        for name, average in self._averages.items():
            average.copy_(saved[name])
        self._show()

    def _show(self) -> None:
        for name, average in self._averages.items():
            own = self._lm.model.get_parameter(name)
            if own.data_ptr() != average.data_ptr():
                own.data.copy_(average)


def self_teacher(
    student: CausalLM,
    *,
    weights: Weights,
    decay: float = 0.999,
    reader: Reader | None = None,
) -> SelfTeacher | AverageTeacher | LiveTeacher:
    """The student as its own teacher; `initial` without an adapter is a frozen copy as it is now.

    Raises:
        ConfigError: weights that move are to be remembered, or an impossible decay.
    """
    if weights == "average":
        return AverageTeacher(student, decay=decay, reader=reader)
    if weights == "initial" and not has_lora(student):
        return LiveTeacher(plain_copy(student), reader=reader)
    return SelfTeacher(student, weights=weights, reader=reader)


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode inside; afterwards every submodule's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _moves(weights: str) -> ConfigError:
    return ConfigError(
        f"The teacher's weights are {weights}, which move, and answers are to be remembered; "
        "nothing may be remembered then. Set teacher.remember_megabytes to 0."
    )
