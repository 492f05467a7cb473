"""What a server of either kind is asked for, and what every answer must be."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import RemoteError
from tutelage.core.targets import Head
from tutelage.teachers.remote.wire import Answer, AskedRow, Wanted

_MASS = 1e-3
"""How far probabilities may be from adding up to 1, and one from being at most 1: rounding."""


class ServerApi(ABC):
    """One server's language."""

    @abstractmethod
    def greet(self) -> Mapping[str, Any]:
        """Prove that it serves the model that is wanted; answers what tells it from others.

        Raises:
            RemoteError: it does not answer, or serves another model; names the server.
        """

    @abstractmethod
    def head(self, device: str | torch.device) -> Head:
        """The teacher's head, fetched once."""

    @abstractmethod
    def ask(self, rows: Sequence[AskedRow], wanted: Wanted) -> list[Answer]:
        """Answers as they came, one for each row, cut but not yet believed.

        Raises:
            RemoteError: no answer, a refusal, or one that cannot be read; names the server.
        """


def believed(answer: Answer, row: AskedRow, wanted: Wanted, *, width: int, url: str) -> Answer:
    """The answer, proved to be one that a model could have given.

    Args:
        width: numbers in a hidden state; entries of the head, of logits.

    Raises:
        RemoteError: it is not; names server and row.
    """
    num_tokens = len(row.predicts)
    match wanted.answer:
        case "top_k":
            fault = _of_top_k(answer, wanted, num_tokens)
        case name:
            fault = _of_whole(answer, name, (num_tokens, width))
    if fault is not None:
        raise lie(url, row, fault)
    return answer


def lie(url: str, row: AskedRow | None, fault: str) -> RemoteError:
    """The complaint about an answer that cannot be true."""
    what = "" if row is None else f" for the row with key {row.key}"
    return RemoteError(
        f"The teacher's server {url} answers{what} {fault}. Nothing was learned from it: see what "
        "runs there, and go on with --resume."
    )


def _of_whole(
    answer: Answer, name: Literal["hidden", "logits"], shape: tuple[int, int]
) -> str | None:
    numbers = answer.get(name)
    if numbers is None or not numbers.is_floating_point() or tuple(numbers.shape) != shape:
        got = "nothing" if numbers is None else f"{list(numbers.shape)} {numbers.dtype}"
        return f"with {got} as {name}; it must be {list(shape)} numbers"
    # A masked entry is -inf, in logits.
    broken = numbers.isnan() | (numbers == torch.inf)
    if name == "hidden":
        broken |= numbers.isinf()
    if bool(broken.any()):
        token = int(broken.any(dim=1).nonzero()[0, 0])
        return f"with nan or inf at its trained token {token}; {name} must be finite"
    return None


def _of_top_k(answer: Answer, wanted: Wanted, num_tokens: int) -> str | None:
    ids, logp, tail = (answer.get(name) for name in ("ids", "logp", "tail_logp"))
    if ids is None or logp is None or tail is None:
        return f"with {', '.join(sorted(answer)) or 'nothing'}; it must be ids, logp and tail_logp"
    shape = (num_tokens, min(wanted.num_entries, wanted.num_real))
    if tuple(ids.shape) != shape or tuple(logp.shape) != shape or tail.shape != shape[:1]:
        return (
            f"with {list(ids.shape)} ids, {list(logp.shape)} log-probabilities and "
            f"{list(tail.shape)} tails; they must be {list(shape)} and {[num_tokens]}"
        )
    if not num_tokens:
        return None
    return _of_ids(ids, wanted) or _of_mass(logp, tail)


def _of_ids(ids: Int[Tensor, "N K"], wanted: Wanted) -> str | None:
    outside = (ids < 0) | (ids >= wanted.num_real)
    if bool(outside.any()):
        return (
            f"with id {int(ids[outside][0])}; ids must be below {wanted.num_real}, the entries "
            "that both models know"
        )
    ordered = ids.sort(dim=1).values
    if bool((ordered.diff(dim=1) == 0).any()):
        return "with one id twice at a token; the likeliest entries must be different ones"
    return None


def _of_mass(logp: Float[Tensor, "N K"], tail: Float[Tensor, " N"]) -> str | None:
    every = torch.cat([logp, tail[:, None]], dim=1).double()
    if bool(every.isnan().any()):
        return "with nan; log-probabilities must be numbers"
    if bool((every > _MASS).any()):
        return f"with a log-probability of {float(every.max()):g}; it must be 0 or below"
    if bool((logp.diff(dim=1) > _MASS).any()):
        return "with log-probabilities in no order; the likeliest entry must come first"
    mass = every.exp().sum(dim=1)
    worst = int((mass - 1).abs().argmax())
    if not abs(float(mass[worst]) - 1) <= _MASS:
        return (
            f"with probabilities that add up to {float(mass[worst]):.4f} at its trained token "
            f"{worst}; they must add up to 1"
        )
    return None
