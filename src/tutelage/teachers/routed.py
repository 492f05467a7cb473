"""Which teachers a row is for: weights row by row, from what teachers or a classifier say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Gt
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.core.settings import Settings
from tutelage.core.targets import HiddenTarget
from tutelage.objectives import CrossEntropy
from tutelage.objectives.fused import fused_per_token, labels_only

_TOKENS = CrossEntropy(labels="tokens")


@final
class LikelihoodRouter(Settings):
    """Whoever finds the row's own tokens likelier counts more.

        weight_m = softmax over m of (mean over the trained tokens of log p_m(token) / temperature)

    Related to confidence-aware distillation (CA-MKD), and not the same: that weighs the teachers'
    losses by (1 - softmax(cross-entropy)) / (M - 1), which is this weight for M = 2 teachers at
    temperature 1 and flatter for more; here the weights mix their probabilities.

    Source: after Zhang, Chen and Wang 2022 (CA-MKD), arXiv:2201.00007.
    """

    kind: Literal["likelihood"] = "likelihood"
    temperature: Annotated[float, Gt(0)] = 1.0
    """Nats a token by which a teacher is e times another; small takes the best, large all alike."""
    top: PositiveInt | None = None
    """How many of the best are mixed, their weights brought to a sum of 1; null: all."""


@final
class ClassifierRouter(Settings):
    """A classifier of your own reads the row's question and says who should answer."""

    kind: Literal["classifier"] = "classifier"
    model: str
    """A folder, or a name on the hub, for sequence classification in transformers; its labels must
    be the teachers' names. It is read in float32 on the CPU, once for each row."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is its default branch."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides its scores before the softmax."""
    top: PositiveInt | None = None
    """How many of the best are mixed, their weights brought to a sum of 1, and asked at all; null:
    all."""


@final
@dataclass(frozen=True, kw_only=True)
class ByLikelihood:
    """All teachers are asked about every row, and weighed by what they say of it."""

    router: LikelihoodRouter


@final
@dataclass(frozen=True, kw_only=True)
class ByShares:
    """Each row has a weight for each teacher, and only those that count in it are asked."""

    shares_of: Mapping[str, tuple[float, ...]]
    """A row's content, as in `TokenBatch.keys`, to what each teacher counts, in their order."""


def shares_by(
    scores: Float[Tensor, "B M"], *, temperature: float, top: int | None
) -> Float[Tensor, "B M"]:
    """softmax(scores / temperature) over the `top` highest of each row; 0 for all others.

    Of equal scores the first counts as higher.
    """
    scaled = scores / temperature
    if top is not None:
        place = scaled.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
        scaled = scaled.masked_fill(place >= top, -torch.inf)
    return scaled.softmax(dim=1)


def likelihood_shares(
    found: Sequence[HiddenTarget], batch: TokenBatch, router: LikelihoodRouter
) -> Float[Tensor, "B M"]:
    """What each teacher counts in each row; alike where a row has no trained token."""
    scores = torch.stack([mean_log_likelihood(one, batch) for one in found], dim=1)
    shares = shares_by(scores, temperature=router.temperature, top=router.top)
    return shares.float()


@torch.no_grad()
def mean_log_likelihood(target: HiddenTarget, batch: TokenBatch) -> Float[Tensor, " B"]:
    """Nats per trained token of each row's own tokens, 0 or below; 0 for a row without any.

    A function of the row alone: neither its neighbours nor the rank it is on change one bit.
    """
    means = torch.zeros(batch.num_rows, dtype=torch.float64, device=batch.labels.device)
    for row in range(batch.num_rows):
        own = (batch.row_of == row) & batch.loss_mask
        if not bool(own.any()):
            continue
        labels = labels_only(batch.labels[own], target.head)
        nats = fused_per_token(target.hidden[own], target.head, labels, _TOKENS)
        means[row] = -nats.double().mean()
    return means
