"""What a run may choose about its rows: where prompts come from, and who completes them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, final

from annotated_types import Ge, Gt, Le
from pydantic import Field, PositiveInt, model_validator

from tutelage.core.settings import Settings
from tutelage.rollouts.engines import EngineName, Sampling, VllmSettings
from tutelage.rollouts.replay import TrainOn
from tutelage.rollouts.share import ShareClock

_ONLY_STUDENT = (
    "rollouts.engine is vllm and {}, but vLLM is given the student's weights alone; it must be "
    "another engine then. Set rollouts.engine: auto, or let the student write."
)

PartOfRows: TypeAlias = Annotated[float, Ge(0), Le(1)]


class RowSettings(Settings):
    """Which rows are read, and how they become token ids."""

    data: str
    """A `.jsonl`, `.json`, `.csv` or `.parquet` file, a dataset on the hub, or `preset:FILE` for
    one that ships inside the package. Rows have `prompt` and `completion`, or `messages`; where a
    model writes all completions, the prompt alone will do."""
    split: str = "train"
    """Which split of a hub dataset."""
    subset: str | None = None
    """Which configuration of a hub dataset."""
    columns: Mapping[str, str] = Field(default_factory=dict[str, str])
    """Our name to the data's name for it, such as {prompt: question, completion: answer}."""
    num_rows: PositiveInt | None = None
    """How many rows to use, from the first; null uses all."""
    max_prompt_tokens: PositiveInt = 512
    """A longer prompt is never cut: see `too_long`."""
    max_completion_tokens: PositiveInt = 512
    """Longest completion. A longer one in the data is cut there, and counted in the report; a
    model that writes is stopped there, and what it wrote is marked truncated."""
    too_long: Literal["error", "drop"] = "error"
    """What to do with a row whose prompt is too long: stop, or leave it out and count it."""
    trained_turns: Literal["last", "all"] = "last"
    """Of `messages`, train on the last answer or on every answer of the assistant."""
    shuffle: bool = True
    """Draw a new order every epoch; false reads the rows as they come."""
    chat_template: str | None = None
    """A Jinja template in place of the tokenizer's own."""
    teacher_template: str | None = None
    """Another one for the teacher's prompt, which may read the row's columns (`row.solution`);
    null shows the teacher what the student sees. A column `teacher_prompt` takes its place."""
    template_arguments: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """What the template is given besides the messages, such as {enable_thinking: false}."""


@final
class DatasetRolloutSettings(RowSettings):
    """Prompts with finished answers, from a file or a dataset of the hub."""

    kind: Literal["dataset"] = "dataset"


class WritingSettings(RowSettings):
    """How a model completes the prompts; the loss has a temperature of its own."""

    temperature: Annotated[float, Ge(0)] = 1.0
    """Divides the logits before a token is drawn. 0 is greedy: always the likeliest token."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw from the fewest likeliest tokens whose probabilities reach this sum. 1 keeps all."""
    top_k: PositiveInt | None = None
    """Draw from that many likeliest tokens; null keeps all. Applied before top_p."""
    batch_rows: PositiveInt = 32
    """Rows written side by side. Changes speed and memory, not what is drawn."""
    completions_per_prompt: PositiveInt = 1
    """How often each prompt is completed, side by side in one step (group size)."""
    engine: EngineName = "auto"
    """Who computes the completions; it changes their speed, and what is drawn by rounding alone.
    `slots`: ours, for Llama, Mistral, Qwen2 and Qwen3 (SmolLM2 is a Llama), which fills the place
    of a finished row at once. `hf`: transformers' generate, for every family. `auto`: slots where
    they know the model, hf elsewhere. `vllm`: a vLLM of the run's own or one that you have
    started, for the student's completions; it draws other tokens from the same distribution."""
    vllm: VllmSettings | None = None
    """Who runs it, and how often it is given the student's weights; null with `engine: vllm` is a
    vLLM of the run's own, given them after every step."""
    empty_completions: Literal["train", "skip"] = "train"
    """A completion that ends where it begins: train its end like any other token, or let it weigh
    nothing. Counted and named in rollouts.jsonl either way."""

    @property
    def sampling(self) -> Sampling:
        """What the engine is told."""
        return Sampling(
            max_completion_tokens=self.max_completion_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            batch_rows=self.batch_rows,
        )

    @model_validator(mode="after")
    def _vllm_only_where_it_writes(self) -> "WritingSettings":
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError(
                f"rollouts.vllm is given and rollouts.engine is {self.engine}; it must be null "
                "then. Remove it, or set rollouts.engine: vllm."
            )
        return self

    @model_validator(mode="after")
    def _greedy_draws_from_nothing(self) -> "WritingSettings":
        if self.temperature == 0 and (self.top_p < 1 or self.top_k is not None):
            raise ValueError(
                "rollouts.temperature is 0, which always takes the likeliest token; top_p and "
                "top_k must be left out then. Remove them, or raise the temperature."
            )
        return self


@final
class StudentRolloutSettings(WritingSettings):
    """The student completes the prompts as it learns: on-policy."""

    kind: Literal["student"] = "student"


@final
class TeacherRolloutSettings(WritingSettings):
    """The teacher completes the prompts, afresh every epoch."""

    kind: Literal["teacher"] = "teacher"

    @model_validator(mode="after")
    def _vllm_has_the_student(self) -> "TeacherRolloutSettings":
        if self.engine == "vllm":
            raise ValueError(_ONLY_STUDENT.format("rollouts.kind is teacher"))
        return self


@final
class MixedRolloutSettings(WritingSettings):
    """The student completes a share of the rows; the others have the data's or the teacher's."""

    kind: Literal["mixed"] = "mixed"
    student_share: PartOfRows = 0.5
    """How many of the rows the student completes, each row drawn by itself (GKD's lambda)."""
    final_student_share: PartOfRows | None = None
    """Where the share goes, in a straight line over the run's steps; null lets it stay."""
    otherwise: Literal["dataset", "teacher"] = "dataset"
    """Who completes the other rows."""

    @model_validator(mode="after")
    def _vllm_has_the_student(self) -> "MixedRolloutSettings":
        if self.engine == "vllm" and self.otherwise == "teacher":
            raise ValueError(_ONLY_STUDENT.format("rollouts.otherwise is teacher"))
        return self

    def clock(self) -> ShareClock:
        """The share as it stands before the first step."""
        return ShareClock("student_share", self.student_share, self.final_student_share)


@final
class ReplayRolloutSettings(WritingSettings):
    """The student completes a share of the rows; the others are what it wrote before."""

    kind: Literal["replay"] = "replay"
    buffer_rows: PositiveInt = 1000
    """Rollouts kept, over all processes; the oldest leave."""
    fresh_share: Annotated[float, Gt(0), Le(1)] = 0.5
    """How many of the rows are written anew. While nothing is kept yet, all are."""
    final_fresh_share: PartOfRows | None = None
    """Where that share goes, in a straight line over the run's steps; null lets it stay."""
    train_on: TrainOn = "fresh"
    """`fresh`: train on what was written now, and on kept rows for the rest (DistiLLM). `buffer`:
    keep what was written now, then draw the whole step from what is kept (ImitKD)."""

    def clock(self) -> ShareClock:
        """The share as it stands before the first step."""
        return ShareClock("fresh_share", self.fresh_share, self.final_fresh_share)

    @model_validator(mode="after")
    def _what_is_kept_is_read(self) -> "ReplayRolloutSettings":
        always_fresh = self.fresh_share == 1 and self.final_fresh_share in (None, 1)
        if always_fresh and self.train_on == "fresh":
            raise ValueError(
                "rollouts.fresh_share is 1 to the end, so nothing kept would ever be trained on; "
                "it must be less than 1. Lower it or final_fresh_share, set train_on: buffer, or "
                "use rollouts.kind: student."
            )
        return self


RolloutSettings: TypeAlias = Annotated[
    DatasetRolloutSettings
    | StudentRolloutSettings
    | TeacherRolloutSettings
    | MixedRolloutSettings
    | ReplayRolloutSettings,
    Field(discriminator="kind"),
]
