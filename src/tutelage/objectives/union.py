"""The union of all objectives, and the way from a mapping of settings to one of them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from tutelage.objectives.concrete_score import ConcreteScore
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.divergences import JSD, ForwardKL, Jeffreys, ReverseKL, SymmetricKL
from tutelage.objectives.objective import Objective

ObjectiveSettings = Annotated[
    ForwardKL | ReverseKL | Jeffreys | SymmetricKL | JSD | ConcreteScore | CrossEntropy,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Objective] = TypeAdapter(ObjectiveSettings)


def from_settings(settings: Mapping[str, Any]) -> Objective:
    """The objective that `settings` describe, by their `kind`."""
    return _ADAPTER.validate_python(dict(settings))
