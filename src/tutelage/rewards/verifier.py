"""What judges rollouts, as an interface, and the way from a row to the column it needs."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from tutelage.core.errors import DataError
from tutelage.core.records import Rollout, Verdict


class Verifier(ABC):
    """Gives each rollout a reward, from its text and from the row it answers."""

    @abstractmethod
    def judge(self, rollouts: Sequence[Rollout], texts: Sequence[str]) -> list[Verdict]:
        """One verdict for each rollout, in their order.

        A wrong, malformed or hostile completion is never an error: it gets a low reward, and the
        note says why.

        Args:
            rollouts: what was answered; the row lies in `rollout.prompt.row`.
            texts: their completions, decoded.

        Raises:
            DataError: a row lacks what this verifier needs.
        """


def paired(rollouts: Sequence[Rollout], texts: Sequence[str]) -> Iterable[tuple[Rollout, str]]:
    """Each rollout with its text; as many of one as of the other."""
    if len(rollouts) != len(texts):
        raise DataError(
            f"texts has {len(texts)} entries; it must be {len(rollouts)}, one for each rollout. "
            "Decode every completion."
        )
    return zip(rollouts, texts, strict=True)


def name_of(rollout: Rollout) -> str:
    """Where the row came from, for messages."""
    return rollout.prompt.name or "A row"


def column_of(rollout: Rollout, column: str, *, setting: str) -> Any:  # noqa: ANN401 - data
    """What the row holds in `column`.

    Args:
        setting: the dotted name of the setting that chose the column, for the message.

    Raises:
        DataError: the row has no such column, or nothing in it.
    """
    row = rollout.prompt.row
    if column not in row:
        raise DataError(
            f"{name_of(rollout)} has no column {column!r}; it must be one of "
            f"{', '.join(sorted(row)) or 'none at all'}. Correct {setting}, or the row."
        )
    found = row[column]
    if found is None or (isinstance(found, str | list | tuple) and not found):
        raise DataError(
            f"{name_of(rollout)} has nothing in column {column!r}; it must hold what a completion "
            f"is judged by. Fill it, drop the row, or correct {setting}."
        )
    return found
