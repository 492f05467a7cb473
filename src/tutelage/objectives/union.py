"""The union of all objectives, sums of them, and the way from a mapping of settings to one."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, final, get_args

import torch
from annotated_types import Gt, MinLen
from jaxtyping import Float, Int
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import ConfigError
from tutelage.core.settings import Settings
from tutelage.objectives import row_kernels
from tutelage.objectives.concrete_score import ConcreteScore
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.cross_vocabulary import ULD, AlignedKL, DualSpace
from tutelage.objectives.direct_logit import DirectLogit
from tutelage.objectives.divergences import Divergence
from tutelage.objectives.entries import ClipSettings, TopSupport
from tutelage.objectives.objective import Objective
from tutelage.objectives.on_policy.policy_gradient import PolicyGradient
from tutelage.objectives.on_policy.sampled_token import SampledToken


@final
class WeightedPart(Settings):
    """One objective of a sum, and what it counts."""

    weight: Annotated[float, Gt(0)]
    """Multiplies this part's nats."""

    objective: "ObjectiveSettings"
    """Any objective, with its own settings."""


@final
class WeightedSum(Objective):
    """Several objectives at once, each with its weight; the weights need not add up to 1."""

    kind: Literal["weighted_sum"] = "weighted_sum"

    parts: Annotated[tuple[WeightedPart, ...], MinLen(1)]
    """What is added up."""

    @property
    @override
    def needs_teacher(self) -> bool:
        """As soon as one part does."""
        return any(part.objective.needs_teacher for part in self.parts)

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """The weighted sum of the parts' nats."""
        values = [
            part.weight * part.objective.from_logits(student_logits, teacher_logits, labels)
            for part in self.parts
        ]
        return torch.stack(values).sum(dim=0)

    @override
    def on_average(self) -> Objective:
        """The same sum of what its parts are on average."""
        parts = [
            part.model_copy(update={"objective": part.objective.on_average()})
            for part in self.parts
        ]
        return self.model_copy(update={"parts": tuple(parts)})

    @override
    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """The weighted sum of the parts' values, and of their gradients in place."""
        *earlier, last = self.parts
        values = student_logits.new_zeros(student_logits.shape[0])
        total: Tensor | None = None
        for part in earlier:
            student = self._scratch(student_logits, "student").copy_(student_logits)
            teacher = self._scratch(teacher_logits, "teacher").copy_(teacher_logits)
            values.add_(part.objective.rows(student, teacher, labels), alpha=part.weight)
            if total is None:
                total = torch.mul(student, part.weight, out=self._scratch(student, "total"))
            else:
                total.add_(student, alpha=part.weight)
        values.add_(last.objective.rows(student_logits, teacher_logits, labels), alpha=last.weight)
        student_logits.mul_(last.weight)
        if total is not None:
            student_logits.add_(total)
        return values

    @property
    def depth(self) -> int:
        """1, or one more than the deepest sum inside."""
        inside = [part.objective for part in self.parts]
        return 1 + max((one.depth for one in inside if isinstance(one, WeightedSum)), default=0)

    def _scratch(self, rows: Float[Tensor, "R V"], name: str) -> Float[Tensor, "R V"]:
        """Memory of this sum's own: a sum inside it is at work while it is in use."""
        return row_kernels.scratch_like(rows, f"sum_{self.depth}_{name}")


ObjectiveSettings = Annotated[
    Divergence
    | DirectLogit
    | ConcreteScore
    | CrossEntropy
    | SampledToken
    | PolicyGradient
    | AlignedKL
    | ULD
    | DualSpace
    | WeightedSum,
    Field(discriminator="kind"),
]
"""Any objective, as a field of a tree of settings."""

WeightedPart.model_rebuild()
WeightedSum.model_rebuild()

_ADAPTER: TypeAdapter[Objective] = TypeAdapter(ObjectiveSettings)


def from_settings(settings: Mapping[str, Any]) -> Objective:
    """The objective that `settings` describe, by their `kind`.

    Raises:
        ConfigError: a kind or setting that does not exist, a value out of range, or two settings
            that contradict each other; one line, with the dotted path and the way out.
    """
    try:
        return _ADAPTER.validate_python(dict(settings))
    except ValidationError as error:
        raise ConfigError(_complaint(error)) from None


def _complaint(error: ValidationError) -> str:
    """The first mistake as one line: where, what was found, what is allowed, what to do."""
    mistake = error.errors()[0]
    objectives, clips = _kinds(ObjectiveSettings), _kinds(ClipSettings)
    # Pydantic's location names the chosen member of a union too; a user never wrote that.
    steps = [str(step) for step in mistake["loc"]]
    where = ".".join(["objective", *(s for s in steps if s not in objectives and s not in clips)])
    holders = {**objectives, **clips, "support": TopSupport}
    kind = next((step for step in reversed(steps[:-1]) if step in holders), "")
    kinds = clips if steps and steps[-1] == "clip" else objectives
    context = mistake.get("ctx", {})
    match mistake["type"]:
        case "union_tag_not_found":
            return f"{where}.kind is missing; it must be one of {', '.join(kinds)}."
        case "union_tag_invalid":
            tag = str(context["tag"])
            return (
                f"{where}.kind is {tag}; it must be one of {', '.join(kinds)}."
                f"{_did_you_mean(tag, kinds)}"
            )
        case "extra_forbidden" if kind:
            names = list(holders[kind].model_fields)
            return (
                f"{where} is not a setting of {kind}, which has {', '.join(names)}."
                f"{_did_you_mean(steps[-1], names)}"
            )
        case "missing":
            return f"{where} is missing; it must be given. Add it."
        case "value_error":
            return f"{where}.{context['error']}"
        case _:
            allowed = mistake["msg"].replace("Input should be", "it must be")
            return f"{where} is {mistake['input']!r}; {allowed}."


def _kinds(union: Any) -> dict[str, type[Settings]]:  # noqa: ANN401 - an annotated union
    """The members of a union of settings, by their kind."""
    return {member.model_fields["kind"].default: member for member in get_args(get_args(union)[0])}


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]}?" if near else ""
