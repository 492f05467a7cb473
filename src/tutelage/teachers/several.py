"""Several teachers at once: one for each row, or all of them blended by their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import HiddenTarget, SeveralTarget
from tutelage.teachers.reading import rows_of_batch
from tutelage.teachers.routed import ByLikelihood, ByShares, likelihood_shares
from tutelage.teachers.teacher import Teacher

Blend = Literal["mixture", "product"]
Found = TypeVar("Found")


@final
@dataclass(frozen=True, kw_only=True)
class ByRow:
    """Each row has one teacher."""

    teacher_of: Mapping[str, str]
    """A row's content, as in `TokenBatch.keys`, to the name of its teacher."""


@final
@dataclass(frozen=True, kw_only=True)
class ByWeight:
    """All teachers answer for every row."""

    weights: Mapping[str, float]
    """Name to share; they add up to 1."""
    blend: Blend = "mixture"


@final
class SeveralTeachers(Teacher):
    """Asks its members, each in its own mode, and tells what each of them counts.

    A member is asked only about rows that are its own. All answer with hidden states.
    """

    def __init__(
        self, members: Mapping[str, Teacher], *, by: ByRow | ByWeight | ByShares | ByLikelihood
    ) -> None:
        self.members: Mapping[str, Teacher] = dict(members)
        """By name."""
        self._by = by

    @override
    def score(self, batch: TokenBatch) -> SeveralTarget:
        asked = self._asked(batch)
        found = [
            self._answer(name, batch, asked[:, number]) for number, name in enumerate(self.members)
        ]
        weights = asked
        if isinstance(self._by, ByLikelihood):
            every = [one for one in found if one is not None]
            weights = likelihood_shares(every, batch, self._by.router)
        shares: list[float] = weights.double().sum(dim=0).tolist()
        counted = [number for number, share in enumerate(shares) if share > 0]
        routed = isinstance(self._by, ByShares | ByLikelihood)
        return SeveralTarget(
            members=tuple(one for n, one in enumerate(found) if n in counted and one is not None),
            weights=weights[batch.row_of][:, counted],
            blend=self._by.blend if isinstance(self._by, ByWeight) else "mixture",
            labels=batch.labels,
            row_shares=dict(zip(self.members, shares, strict=True)) if routed else None,
        )

    def _asked(self, batch: TokenBatch) -> Float[Tensor, "B M"]:
        """What each member counts in each row, before any of them is asked."""
        names, device = list(self.members), batch.labels.device
        match self._by:
            case ByLikelihood():
                return torch.ones(batch.num_rows, len(names), device=device)
            case ByWeight(weights=weights):
                shares = [weights[name] for name in names]
                return torch.tensor([shares] * batch.num_rows, device=device)
            case ByRow(teacher_of=teacher_of):
                own = [names.index(_found(key, teacher_of)) for key in batch.keys]
                found = torch.zeros(batch.num_rows, len(names), device=device)
                found[torch.arange(batch.num_rows), own] = 1
                return found
            case ByShares(shares_of=shares_of):
                return torch.tensor([_found(key, shares_of) for key in batch.keys], device=device)

    def _answer(
        self, name: str, batch: TokenBatch, share: Float[Tensor, " B"]
    ) -> HiddenTarget | None:
        """A member's hidden states, zeros for rows that are not its own; None where none is."""
        rows: list[int] = share.nonzero()[:, 0].tolist()
        if not rows:
            return None
        own = batch if len(rows) == batch.num_rows else rows_of_batch(batch, rows)
        target = self.members[name].score(own)
        if not isinstance(target, HiddenTarget):
            raise DataError(
                f"The teacher {name} answers with a {type(target).__name__}; one of several must "
                "answer with hidden states. Cache hidden states, or use it live."
            )
        if own is batch:
            return target
        hidden = target.hidden.new_zeros(len(batch.labels), target.hidden.shape[1])
        hidden[torch.isin(batch.row_of, torch.tensor(rows, device=share.device))] = target.hidden
        return replace(target, hidden=hidden, labels=batch.labels)


def _found(key: str, known: Mapping[str, Found]) -> Found:
    found = known.get(key)
    if found is None:
        raise DataError(
            f"The row with key {key} has no teacher; every row must name one. Teachers by row "
            "serve the rows that the run began with."
        )
    return found


def blended_by(names: Sequence[str], weights: Mapping[str, float] | None, blend: Blend) -> ByWeight:
    """The weights brought to a sum of 1; all alike where none are given."""
    given = dict.fromkeys(names, 1.0) if weights is None else weights
    total = sum(given.values())
    return ByWeight(weights={name: given[name] / total for name in names}, blend=blend)
