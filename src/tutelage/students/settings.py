"""Where a student comes from: loaded, cut out of its teacher, or new."""

from abc import ABC
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, final

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tutelage.core.settings import Settings
from tutelage.students.moe.settings import Rerouting, Upcycling

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Scalar: TypeAlias = bool | int | float | str | None


@final
class LoraSettings(Settings):
    """Train small matrices beside the model's own, which stay as they are.

    Source: Hu et al. 2021 (LoRA), arXiv:2106.09685.
    """

    rank: PositiveInt = 16
    """Width of the small matrices (r)."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """The adapter's product counts alpha / rank times."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the adapter's inputs that training leaves out; 0 leaves out none."""
    targets: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Linear layers by name, such as [q_proj, v_proj]; null is all of them but the head."""
    save: Literal["merged", "adapter", "both"] = "merged"
    """`merged` writes a plain model that loads as any other; `adapter` the adapter alone, into
    the folder `adapter` inside it; `both` does both."""


class StudentChoice(Settings, ABC):
    """What every student has."""

    dtype: Dtype = "float32"
    """What the weights are kept and updated in. float32 with bf16 autocast learns best; updates
    smaller than the spacing of bfloat16 are lost."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names that stay as they are, such as `model.embed_tokens.*`. A pattern
    that matches nothing is an error."""


class GrownStudent(StudentChoice, ABC):
    """A student that knows something already, which an adapter can leave as it is."""

    lora: LoraSettings | None = None
    """Train an adapter in place of the weights, such as {rank: 64, alpha: 128}; null trains the
    weights."""


@final
class LoadedStudent(GrownStudent):
    """A model that exists."""

    kind: Literal["loaded"] = "loaded"
    model: str
    """A hub name, a folder, a `.gguf` file, or `package:NAME`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


@final
class PrunedStudent(GrownStudent):
    """A copy of a model with fewer layers or narrower ones, by default of the teacher.

    It starts from the weights as its teacher holds them: with `teacher.dtype: bfloat16`, from the
    rounded ones, widened to the student's own dtype. A `model` of its own is read in full.
    """

    kind: Literal["pruned"] = "pruned"
    model: str | None = None
    """What to cut; null is the teacher."""
    keep_layers: PositiveInt | None = None
    """How many layers stay; at most as many as there are. Null keeps all."""
    keep_neurons: PositiveInt | None = None
    """How many neurons of each layer's feed-forward part stay: those that add the most to the
    hidden states on calibration rows, once the layers are chosen. Null keeps all."""
    choose: Literal["influence", "uniform"] | tuple[NonNegativeInt, ...] = "influence"
    """Which ones: those that change their input most on calibration rows, evenly spaced ones, or
    this list (from 0, ascending)."""

    @model_validator(mode="after")
    def _something_is_cut(self) -> "PrunedStudent":
        if self.keep_layers is None and self.keep_neurons is None:
            raise ValueError(
                "student.keep_layers and student.keep_neurons are null; one of them must be given. "
                "Set keep_layers to how many layers stay."
            )
        return self


@final
class UpcycledStudent(Upcycling, StudentChoice):
    """A mixture of experts made of a dense model's own neurons, by default of the teacher's.

    It starts from the weights as its teacher holds them. With all experts active and equal gates it
    computes what the dense model does.
    """

    kind: Literal["upcycled"] = "upcycled"
    model: str | None = None
    """What to take apart; null is the teacher."""


@final
class ReroutedStudent(Rerouting, StudentChoice):
    """A mixture of experts that exists, its routers made anew from the teacher's neurons.

    Source: PADD, arXiv:2606.10369, section 2.2.
    """

    kind: Literal["rerouted"] = "rerouted"
    model: str
    """The mixture of experts: a hub name or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


@final
class FreshStudent(StudentChoice):
    """A new model with random weights, in the shape of another one with changes."""

    kind: Literal["fresh"] = "fresh"
    like: str | None = None
    """Whose config to begin with; null is the teacher's. The vocabulary is always the teacher's."""
    config: Mapping[str, Scalar] = Field(default_factory=dict[str, Scalar])
    """Changes to it, in the config's own names, such as {num_hidden_layers: 6}."""


StudentSettings: TypeAlias = Annotated[
    LoadedStudent | PrunedStudent | UpcycledStudent | ReroutedStudent | FreshStudent,
    Field(discriminator="kind"),
]


def lora_of(settings: StudentSettings) -> LoraSettings | None:
    """The student's adapter; None where its own weights are trained."""
    return settings.lora if isinstance(settings, GrownStudent) else None
