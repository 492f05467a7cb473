"""The records that travel through a step: Prompt, Rollout, Verdict, View, TokenBatch.

The alignment rule lives in `View.predicts`: for each trained completion token, the index of the
position whose output predicts it. Only `text/collate.py` computes it; nobody else shifts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from jaxtyping import Bool, Float, Int
from torch import Tensor

Source = Literal["dataset", "student", "teacher"]


@final
@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row of the data as the models will read it: token ids, already through the template."""

    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...] | None = None
    """The teacher's own prompt; None when it reads the student's."""
    row: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The data row itself, for verifiers, templates and reports."""
    name: str = ""
    """Where the row came from (file and line), for error messages."""


@final
@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One prompt with one completion, as token ids; nothing here is ever decoded and re-encoded."""

    prompt: Prompt
    completion_ids: tuple[int, ...]
    trained: tuple[bool, ...] | None = None
    """Which completion tokens are trained; None trains all of them."""
    source: Source = "dataset"
    truncated: bool = False
    """The completion was cut at the length limit, so it carries no end-of-sequence token."""
    sampled_logp: tuple[float, ...] | None = None
    """For each completion token, the log-probability it was drawn with: after temperature, top-k
    and top-p. 0 where it was no matter of chance; None where no model of ours drew it."""
    reward: float | None = None
    """What a verifier found it worth; None where nobody judged it."""
    advantage: float | None = None
    """How much better it did than the others that answer the same prompt."""

    @property
    def is_empty(self) -> bool:
        """Nothing is said: the completion ends where it begins."""
        return len(self.completion_ids) <= 1 and not self.truncated


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verifier says of one rollout."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the reward was made of, by name, for the log: rewards of a sum, tests that passed."""
    note: str = ""
    """Why, in a few words for a person; may quote the completion."""


@final
@dataclass(frozen=True, kw_only=True)
class View:
    """How one model reads a batch: the tokens of all rows laid end to end, without padding.

    L tokens, B rows, N trained completion tokens.
    """

    input_ids: Int[Tensor, " L"]
    position_ids: Int[Tensor, " L"]
    """Starts again at 0 with every row."""
    row_starts: Int[Tensor, " B_plus_1"]
    """Where each row begins; the last entry is L."""
    predicts: Int[Tensor, " N"]
    """For each trained token, the index into L of the position whose output predicts it."""


@final
@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """One micro-batch: two views of the same completions, aligned token by token."""

    student: View
    teacher: View
    """The same object as `student` when both read the same prompts."""
    labels: Int[Tensor, " N"]
    """The trained completion tokens themselves."""
    loss_mask: Bool[Tensor, " N"]
    """True where trained. Rows of N that are False are scored but weigh nothing."""
    row_of: Int[Tensor, " N"]
    """The row (0 to B-1) that each of the N tokens belongs to."""
    offset_in_row: Int[Tensor, " N"]
    """The token's place inside its completion, from 0."""
    keys: tuple[str, ...]
    """One content hash a row: prompt ids, completion ids, for each view."""
    sampled_logp: Float[Tensor, " N"] | None = None
    """What each trained token was drawn with, in float32; nan for the tokens of rows that nobody
    drew, and None where the whole batch is of such rows."""
    advantages: Float[Tensor, " N"] | None = None
    """For each token, its row's advantage, in float32; nan for rows that have none, and None where
    no row has one."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.keys)

    @property
    def num_tokens(self) -> int:
        """Tokens the student reads, trained or not."""
        return int(self.student.input_ids.shape[0])
