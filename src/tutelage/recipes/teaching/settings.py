"""What a recipe may choose about a student that teaches itself."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

from annotated_types import Ge, Lt
from pydantic import NonNegativeInt, PositiveInt

from tutelage.core.settings import Settings
from tutelage.core.targets import Rest
from tutelage.teachers import Weights
from tutelage.text import Context


@final
class SelfTeacherSettings(Settings):
    """The student itself, shown what the student is not.

    Source: Zhao et al. 2026 (OPSD), arXiv:2601.18734.
    """

    kind: Literal["self"] = "self"
    weights: Weights = "initial"
    """`initial`: what the student was before its first step, by switching its adapter off, or as
    a frozen copy where it has none. `average`: a running average of what it was. `live`: what it
    is, which chases its own tail."""
    decay: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Share of the average that each step keeps; 0 is the student one step late."""
    may_copy: bool = True
    """Without student.lora, `initial` keeps a second copy of the trained weights; false refuses
    to, in place of taking that memory."""
    context: Context = "solution"
    """What only the teacher reads: the row's worked `solution`, its final `answer` alone, the
    solution of an`other` problem, `none`, `feedback` on an attempt, or a `wrong` solution."""
    column: str | None = None
    """Where it is read from; null is the column solution, answer, feedback or wrong_solution."""
    wording: str | None = None
    """How the teacher's question is worded: null in the package's own long words, `brief` in short
    ones for small models, or by a Jinja file of yours."""
    chat_template: str | None = None
    """A Jinja template for the teacher's view of a conversation; null is the student's."""
    template_arguments: Mapping[str, Any] | None = None
    """What that template is given, such as {enable_thinking: true}; null is what the student's
    is given."""
    max_prompt_tokens: PositiveInt = 2048
    """A longer prompt of the teacher's has its context cut in the middle, and nothing else."""
    remember_megabytes: NonNegativeInt = 0
    """How much memory may hold answers already given; only weights that stay can use it."""


@final
class CachedTeacherSettings(Settings):
    """A folder of answers that `tutelage cache` wrote: no teacher is loaded, and none is asked."""

    kind: Literal["cached"] = "cached"
    folder: str
    """What `tutelage cache RECIPE --out FOLDER` was given."""
    rest: Rest | None = None
    """Top-k answers: what becomes of the entries that were not kept. `tail_bucket` lumps them into
    one class, `renormalised` leaves them out on both sides, `truncated` only sums the kept terms;
    null is tail_bucket, but renormalised for concrete_score."""
