"""Where a student comes from: loaded, cut out of its teacher, or new."""

from abc import ABC
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, final

from pydantic import Field, NonNegativeInt, PositiveInt

from tutelage.core.settings import Settings

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Scalar: TypeAlias = bool | int | float | str | None


class StudentChoice(Settings, ABC):
    """What every student has."""

    dtype: Dtype = "float32"
    """What the weights are kept and updated in. float32 with bf16 autocast learns best; updates
    smaller than the spacing of bfloat16 are lost."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names that stay as they are, such as `model.embed_tokens.*`. A pattern
    that matches nothing is an error."""


@final
class LoadedStudent(StudentChoice):
    """A model that exists."""

    kind: Literal["loaded"] = "loaded"
    model: str
    """A hub name, a folder, a `.gguf` file, or `package:NAME`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


@final
class PrunedStudent(StudentChoice):
    """A copy of a model with fewer layers, by default of the teacher.

    It starts from the weights as its teacher holds them: with `teacher.dtype: bfloat16`, from the
    rounded ones, widened to the student's own dtype. A `model` of its own is read in full.
    """

    kind: Literal["pruned"] = "pruned"
    model: str | None = None
    """What to cut; null is the teacher."""
    keep_layers: PositiveInt
    """How many layers stay; at most as many as there are."""
    choose: Literal["influence", "uniform"] | tuple[NonNegativeInt, ...] = "influence"
    """Which ones: those that change their input most on calibration rows, evenly spaced ones, or
    this list (from 0, ascending)."""


@final
class FreshStudent(StudentChoice):
    """A new model with random weights, in the shape of another one with changes."""

    kind: Literal["fresh"] = "fresh"
    like: str | None = None
    """Whose config to begin with; null is the teacher's. The vocabulary is always the teacher's."""
    config: Mapping[str, Scalar] = Field(default_factory=dict[str, Scalar])
    """Changes to it, in the config's own names, such as {num_hidden_layers: 6}."""


StudentSettings: TypeAlias = Annotated[
    LoadedStudent | PrunedStudent | FreshStudent, Field(discriminator="kind")
]
