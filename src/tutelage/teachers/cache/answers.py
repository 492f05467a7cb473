"""A teacher's answer for one row as stored tensors, and stored rows as a target again."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.records import TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.core.targets import (
    Head,
    HiddenTarget,
    Rest,
    SampledTarget,
    Target,
    TopKTarget,
)
from tutelage.objectives.plain import plain_logits
from tutelage.teachers.cache.identity import AnswerSettings
from tutelage.teachers.cache.packing import pack_ids, unpack_ids
from tutelage.teachers.cache.shard import Payload

_POSITIONS = 64
"""Whose scores are made at a time."""


@torch.no_grad()
def stored(target: HiddenTarget, settings: AnswerSettings, *, key: str) -> dict[str, Tensor]:
    """What is kept of a row, on the CPU.

    Args:
        key: the row's content, which its draws follow from.
    """
    dtype: torch.dtype = getattr(torch, settings.dtype)
    if settings.answer == "hidden":
        return {"hidden": target.hidden.to("cpu", dtype).contiguous()}
    if settings.answer == "top_k":
        blocks = [_top(logp, lse, settings) for logp, lse in _scores(target, settings)]
    else:
        generator = torch.Generator().manual_seed(seed_for(settings.seed, "draws", key))
        blocks = [_drawn(logp, settings, generator) for logp, _ in _scores(target, settings)]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def _scores(target: HiddenTarget, settings: AnswerSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities of a few positions at a time over the real entries, and log-sum-exps."""
    wide = torch.promote_types(target.hidden.dtype, torch.float32)
    for hidden in target.hidden.split(_POSITIONS):
        scores = plain_logits(hidden, target.head, wide) / settings.temperature
        lse = scores.logsumexp(dim=-1)
        yield scores - lse[:, None], lse


def _top(
    logp: Float[Tensor, "T V"], lse: Float[Tensor, " T"], settings: AnswerSettings
) -> dict[str, Tensor]:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    num_entries = logp.shape[1]
    kept, ids = logp.topk(min(settings.num_entries, num_entries), dim=-1)
    # Summed over the rest itself: what the kept ones leave of 1 has lost its digits.
    tail = logp.scatter(1, ids, -torch.inf).logsumexp(dim=-1)
    low, high = pack_ids(ids.cpu(), num_entries)
    found = {
        "ids": low,
        "logp": kept.to("cpu", dtype),
        "log_sum_exp": lse.float().cpu(),
        "tail_logp": tail.float().cpu(),
    }
    return found if high is None else {**found, "ids_high": high}


def _drawn(
    logp: Float[Tensor, "T V"], settings: AnswerSettings, generator: torch.Generator
) -> dict[str, Tensor]:
    """Distinct ids of each position end to end, with how often each was drawn."""
    logp = logp.cpu()
    if not len(logp):
        return _nothing_drawn(logp, settings)
    proposal = (logp / settings.proposal_temperature).log_softmax(dim=-1)
    draws = torch.multinomial(
        proposal.exp(), settings.num_samples, replacement=True, generator=generator
    )
    some = [row.unique(return_counts=True) for row in draws]
    ids, counts = (torch.cat(column) for column in zip(*some, strict=True))
    low, high = pack_ids(ids[:, None], logp.shape[1])
    width = torch.uint8 if settings.num_samples < 1 << 8 else torch.uint16
    found = {
        "ids": low[:, 0],
        "num_distinct": torch.tensor([len(row) for row, _ in some]).to(width),
        "counts": counts.to(width),
        "entropy": -(logp.exp() * torch.where(logp > -torch.inf, logp, 0.0)).sum(-1).float(),
    }
    if settings.proposal_temperature != 1:
        at = torch.arange(len(some)).repeat_interleave(torch.tensor([len(r) for r, _ in some]))
        ratio = logp[at, ids] - proposal[at, ids]
        found["log_ratio"] = ratio.to(getattr(torch, settings.dtype))
    return found if high is None else {**found, "ids_high": high[:, 0]}


def _nothing_drawn(logp: Float[Tensor, "0 V"], settings: AnswerSettings) -> dict[str, Tensor]:
    """A row without trained tokens has the tensors of every other row, empty."""
    one = _drawn(logp.new_zeros(1, logp.shape[1]), settings, torch.Generator())
    return {name: tensor[:0] for name, tensor in one.items()}


def answer(
    rows: Sequence[Payload],
    settings: AnswerSettings,
    batch: TokenBatch,
    *,
    head: Head | None,
    num_real: int,
    rest: Rest | None,
) -> Target:
    """The stored rows of a batch, in its order, as a target on its device.

    Args:
        head: the teacher's, on the device of the batch; hidden states need it.
        rest: what becomes of the entries that top-k rows lack.
    """
    device = batch.labels.device
    if settings.answer == "hidden":
        assert head is not None  # noqa: S101  only hidden answers are served with one
        hidden = torch.cat([row["hidden"] for row in rows]).to(device)
        return HiddenTarget(hidden=hidden, head=head, labels=batch.labels)
    if settings.answer == "top_k":
        ids = [unpack_ids(row["ids"], row.get("ids_high")) for row in rows]
        return TopKTarget(
            ids=torch.cat(ids).to(device),
            logp=torch.cat([row["logp"] for row in rows]).float().to(device),
            tail_logp=torch.cat([row["tail_logp"] for row in rows]).to(device),
            labels=batch.labels,
            temperature=settings.temperature,
            num_real=num_real,
            rest=rest,
        )
    ids, weights = _padded(rows, settings)
    return SampledTarget(
        ids=ids.to(device),
        weights=weights.to(device),
        entropy=torch.cat([row["entropy"] for row in rows]).to(device),
        labels=batch.labels,
        temperature=settings.temperature,
        num_real=num_real,
    )


def _padded(rows: Sequence[Payload], settings: AnswerSettings) -> tuple[Tensor, Tensor]:
    """Ids and weights of all positions, filled up to the most distinct ids with weights of 0."""
    lengths = torch.cat([row["num_distinct"] for row in rows]).long()
    low = torch.cat([row["ids"] for row in rows])[:, None]
    tops = [row["ids_high"] for row in rows if "ids_high" in row]
    flat = unpack_ids(low, torch.cat(tops)[:, None] if tops else None)[:, 0]
    weights = torch.cat([row["counts"] for row in rows]).float() / settings.num_samples
    ratios = [row["log_ratio"] for row in rows if "log_ratio" in row]
    if ratios:
        weights = weights * torch.cat(ratios).float().exp()
    inside = torch.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]
    ids, padded = torch.zeros(inside.shape, dtype=torch.long), torch.zeros(inside.shape)
    ids[inside], padded[inside] = flat, weights
    return ids, padded
