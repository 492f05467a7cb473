"""Targets that stand between student and teacher: TAID, a budget of nats, tempered teachers.

A move answers with teacher-side scores. It never carries a gradient and keeps nothing: where it
needs a time `t`, a clock gives it.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import ConfigError
from tutelage.core.settings import Settings
from tutelage.objectives import row_kernels
from tutelage.objectives.objective import Objective
from tutelage.objectives.softmax import expected, log_softmax_at, upcast


@torch.no_grad()
def taid(
    student_logits: Float[Tensor, "*at V"],
    teacher_logits: Float[Tensor, "*at V"],
    t: float | Float[Tensor, "*at"],
) -> Float[Tensor, "*at V"]:
    """Log-probabilities of the student moved a part `t` of the way to the teacher.

        softmax((1 - t) * student_logits + t * teacher_logits)

    The student is taken as it is now, without gradient. The mix is made of fp32 log-probabilities
    (constants fall out of the softmax). An entry that either side rules out is ruled out for
    every t, the ends included, so that the target is continuous in t.

    Source: Shing et al. 2025 (TAID), arXiv:2501.16937.
    """
    student_logp = log_softmax_at(student_logits)
    teacher_logp = log_softmax_at(teacher_logits)
    ruled_out = (student_logp == -torch.inf) | (teacher_logp == -torch.inf)
    if isinstance(t, Tensor):
        t = t.unsqueeze(-1)
    mixed = (1 - t) * student_logp + t * teacher_logp
    return mixed.masked_fill(ruled_out, -torch.inf).log_softmax(dim=-1)


@torch.no_grad()
def budget_t(
    student_logits: Float[Tensor, "*at V"],
    teacher_logits: Float[Tensor, "*at V"],
    budget: float,
) -> Float[Tensor, "*at"]:
    """For each position the largest `t` whose TAID target costs the student at most `budget` nats.

    KL(target || student) never falls as t rises, so bisection is safe.
    """
    student_logp = log_softmax_at(student_logits)
    teacher_logp = log_softmax_at(teacher_logits)

    def affordable(t: Float[Tensor, "*at"]) -> Tensor:
        target = taid(student_logp, teacher_logp, t)
        return expected(target.exp(), target - student_logp) <= budget

    low = torch.zeros_like(student_logp[..., 0])
    high = torch.ones_like(low)
    low = torch.where(affordable(high), high, low)
    for _ in range(52 if low.dtype == torch.float64 else 24):
        middle = (low + high) / 2
        within = affordable(middle)
        low = torch.where(within, middle, low)
        high = torch.where(within, high, middle)
    return low


@torch.no_grad()
def tempered(
    teacher_logits: Float[Tensor, "*at V"], temperature: float | Float[Tensor, "*at"]
) -> Float[Tensor, "*at V"]:
    """The teacher's scores at a temperature of its own, one for all positions or one for each."""
    if isinstance(temperature, Tensor):
        temperature = temperature.unsqueeze(-1)
    return upcast(teacher_logits) / temperature


TemperatureMode = Literal["intended", "inverse", "literal"]


@torch.no_grad()
def reward_temperature(
    advantages: Float[Tensor, "*at"],
    *,
    temperature: float = 1.0,
    response: float = 0.5,
    mode: TemperatureMode = "intended",
    lowest: float = 0.05,
) -> Float[Tensor, "*at"]:
    """The temperature of the teacher on completions of these advantages; no gradient.

        intended    temperature * (1 - tanh(response * A))      surer of what did well
        inverse     temperature / (1 + tanh(response * A))      the same, less far below it
        literal     temperature * (1 + tanh(response * A))      as printed: surer of what failed

    `lowest` bounds the temperature, and for `inverse` the divisor, from below.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equations 5 and 6; the text around them asks
    for the opposite of what they say, which is `intended`.
    """
    change = torch.tanh(response * upcast(advantages))
    if mode == "inverse":
        return (temperature / (1 + change).clamp(min=lowest)).clamp(min=lowest)
    factor = 1 - change if mode == "intended" else 1 + change
    return (temperature * factor).clamp(min=lowest)


class Move(Settings, ABC):
    """One member of `MoveSettings`, told apart by its `kind`."""

    @property
    def by_advantage(self) -> bool:
        """Whether its `t` is each token's advantage, and no time."""
        return False

    @abstractmethod
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        """Scores to learn from instead of the teacher's own; no gradient."""

    def move_rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        *,
        t: float | Float[Tensor, " R"] | None = None,
    ) -> None:
        """The same in place: on return `teacher_logits` holds the moved scores."""
        teacher_logits.copy_(self.moved(student_logits, teacher_logits, t=t))


@final
class NoMove(Move):
    """The teacher's own scores."""

    kind: Literal["none"] = "none"

    @override
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        return upcast(teacher_logits.detach())

    @override
    def move_rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        *,
        t: float | Float[Tensor, " R"] | None = None,
    ) -> None:
        """Nothing moves."""


@final
class Taid(Move):
    """A target that travels from the student to the teacher as training goes on.

    Source: Shing et al. 2025 (TAID), arXiv:2501.16937.
    """

    kind: Literal["taid"] = "taid"

    schedule: Literal["linear", "adaptive", "exponential", "constant"] = "linear"
    """How t goes from t_start to t_end. `adaptive` hurries when the loss falls, never below
    linear; `constant` stays at t_start."""

    t_start: Annotated[float, Ge(0), Le(1)] = 0.4
    """Where the target starts: 0 is the student itself, 1 the teacher."""

    t_end: Annotated[float, Gt(0), Le(1)] = 1.0
    """Where the target arrives."""

    alpha: Annotated[float, Ge(0), Le(1)] | Literal["auto"] = 5e-4
    """Adaptive only: how fast t may hurry. `auto` is 2 * rate / steps; the paper's 5e-4 leaves
    runs of up to 4000 steps exactly linear."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Adaptive only: how much of the smoothed loss change is kept each step (the paper's beta)."""

    rate: Annotated[float, Gt(0)] = 3.0
    """Exponential, and adaptive with alpha auto: how concave the way is."""

    @model_validator(mode="after")
    def _forward_in_time(self) -> "Taid":
        if self.t_start > self.t_end:
            raise ValueError(
                f"t_start is {self.t_start:g} and t_end {self.t_end:g}; t_start must not be "
                "above t_end. Swap them."
            )
        return self

    @override
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        if t is None:
            raise ConfigError("taid has no t; it must be between 0 and 1. Give it a clock.")
        return taid(student_logits, teacher_logits, t)

    @override
    def move_rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        *,
        t: float | Float[Tensor, " R"] | None = None,
    ) -> None:
        if t is None or not row_kernels.all_finite(student_logits, teacher_logits):
            super().move_rows(student_logits, teacher_logits, t=t)
        else:
            row_kernels.mix_rows(student_logits, teacher_logits, t)


@final
class Budget(Move):
    """As far towards the teacher as so many nats allow, for each position by itself."""

    kind: Literal["budget"] = "budget"

    nats: Annotated[float, Gt(0)] = 0.5
    """KL(target || student) is at most this. The L1 norm of the gradient of forward KL is then
    at most sqrt(2 * nats)."""

    @override
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        return taid(
            student_logits, teacher_logits, budget_t(student_logits, teacher_logits, self.nats)
        )

    @override
    def move_rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        *,
        t: float | Float[Tensor, " R"] | None = None,
    ) -> None:
        if not row_kernels.all_finite(student_logits, teacher_logits):
            super().move_rows(student_logits, teacher_logits, t=t)
        else:
            affordable = row_kernels.budget_rows(student_logits, teacher_logits, self.nats)
            row_kernels.mix_rows(student_logits, teacher_logits, affordable)


@final
class Tempered(Move):
    """The teacher at a temperature of its own, the student's left alone."""

    kind: Literal["tempered"] = "tempered"

    teacher_temperature: Annotated[float, Gt(0)]
    """Divides the teacher's logits: below 1 it sounds surer than it is, 1 leaves it alone."""

    @override
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        return tempered(teacher_logits, self.teacher_temperature)


@final
class RewardTemperature(Move):
    """The teacher surer of completions that did well, and less sure of those that did not.

    Its `t` is the token's advantage, not a time.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equations 5 and 6.
    """

    kind: Literal["reward_temperature"] = "reward_temperature"

    temperature: Annotated[float, Gt(0)] = 1.0
    """Of the teacher where the advantage is 0 (tau in the paper)."""

    response: Annotated[float, Ge(0)] = 0.5
    """How much the advantage changes it (kappa in the paper); 0 is `tempered`."""

    mode: TemperatureMode = "intended"
    """`intended`: what the paper's text asks for. `literal`: what its formula says, which makes
    the teacher surest of the worst completion; for comparison. `inverse`: divided by the formula's
    factor, another reading."""

    lowest: Annotated[float, Gt(0)] = 0.05
    """No temperature is below this; large groups have advantages that would ask for less."""

    @property
    @override
    def by_advantage(self) -> bool:
        return True

    @override
    def moved(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        *,
        t: float | Float[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at V"]:
        if t is None:
            raise ConfigError(
                "reward_temperature has no advantages; there must be one for each token. Give the "
                "recipe a reward and rollouts.completions_per_prompt of 2 or more."
            )
        advantages = torch.as_tensor(t, dtype=teacher_logits.dtype, device=teacher_logits.device)
        found = reward_temperature(
            advantages,
            temperature=self.temperature,
            response=self.response,
            mode=self.mode,
            lowest=self.lowest,
        )
        # One for all positions has no axis to be spread along.
        return tempered(teacher_logits, found if found.dim() else float(found))


MoveSettings = Annotated[
    NoMove | Taid | Budget | Tempered | RewardTemperature, Field(discriminator="kind")
]
"""Any move, as a field of a tree of settings."""


def is_learning_rate_ramp(move: Move, objective: Objective) -> bool:
    """Whether TAID with this objective only multiplies the teacher's gradient by t.

    So it is for reverse KL, KL(student || target) = t * KL(student || teacher) plus nothing that
    has a gradient, and for whatever else is linear in the target's scores, such as
    `concrete_score` without teacher weights. Under Adam such a run is a learning-rate warm-up in
    disguise. Found by trying, so it holds for objectives of your own too.
    """
    if not isinstance(move, Taid):
        return False
    objective = objective.on_average()
    whole = _trial_gradient(objective, move, 1.0)
    return all(
        torch.allclose(_trial_gradient(objective, move, t), t * whole, rtol=1e-6, atol=1e-9)
        for t in (0.3, 0.7)
    )


def is_inert(move: Move, objective: Objective) -> bool:
    """Whether the objective never looks at what this move moves, so that it changes nothing.

    So it is for cross-entropy on token ids, and for a teacher temperature of 1.
    """
    if isinstance(move, NoMove):
        return False
    plain = _trial_gradient(objective, NoMove(), None)
    return torch.allclose(_trial_gradient(objective, move, 0.5), plain, rtol=1e-6, atol=1e-9)


def _trial_gradient(objective: Objective, move: Move, t: float | None) -> Float[Tensor, "R V"]:
    """The gradient of the objective on a few fixed rows of made-up scores."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator).unbind()
    labels = torch.zeros(3, dtype=torch.int64)
    objective.rows(student, move.moved(student, 2 * teacher, t=t), labels)
    return student
