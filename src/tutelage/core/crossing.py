"""What is known of one completion in two tokenizers: groups, shared words, and how much of it."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import final

from jaxtyping import Int
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Groups:
    """Consecutive tokens of the student and of the teacher that say the same bytes.

    Rows are counted as in `TokenBatch.labels`: the row that *predicts* a token stands for it, on
    both sides alike, so no group can look at the scores behind its own tokens.
    """

    student_first: Int[Tensor, " G"]
    """Row of the group's first token among the student's N."""
    student_count: Int[Tensor, " G"]
    teacher_first: Int[Tensor, " G"]
    """Row of the group's first token among the teacher's own M."""
    teacher_count: Int[Tensor, " G"]


@final
@dataclass(frozen=True, kw_only=True)
class SharedWords:
    """The vocabulary entries that say the same on both sides, one to one, and the others."""

    student_ids: Int[Tensor, " C"]
    teacher_ids: Int[Tensor, " C"]
    """In the order of `student_ids`."""
    student_rest: Int[Tensor, " S"]
    teacher_rest: Int[Tensor, " R"]
    num_student: int
    """Entries of the student's head that mean something; the teacher's head knows its own."""


@final
@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of what is trained could be compared; counts, to be added up."""

    num_tokens: int = 0
    """Trained tokens of the student."""
    num_single: int = 0
    """Of these, in groups of one token on each side."""
    num_grouped: int = 0
    """In a group of any size; the others have no partner."""
    num_groups: int = 0
    num_bytes: int = 0
    """What the trained tokens say."""
    num_aligned_bytes: int = 0
    """What those in groups say."""
    num_rows: int = 0
    num_lost_rows: int = 0
    """Rows that the teacher's tokenizer cannot say exactly, and that teach nothing."""

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage.of(a + b for a, b in zip(astuple(self), astuple(other), strict=True))

    @classmethod
    def of(cls, counts: Iterable[int]) -> "Coverage":
        """From the counts in the order of the fields."""
        return cls(**dict(zip(cls.__dataclass_fields__, counts, strict=True)))

    def numbers(self) -> dict[str, float]:
        """Shares, for the log."""
        tokens = max(self.num_tokens, 1)
        return {
            "aligned_single_share": self.num_single / tokens,
            "aligned_token_share": self.num_grouped / tokens,
            "aligned_byte_share": self.num_aligned_bytes / max(self.num_bytes, 1),
            "aligned_lost_row_share": self.num_lost_rows / max(self.num_rows, 1),
        }
