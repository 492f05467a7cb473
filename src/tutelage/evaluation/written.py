"""What a student writes to held-out prompts: how good it is, and what its teacher thinks of it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.targets import HiddenTarget, LogitsTarget, SeveralTarget
from tutelage.evaluation.divergence import EvaluationOptions, Sides, evaluate_divergence
from tutelage.evaluation.undisturbed import undisturbed
from tutelage.models import CausalLM
from tutelage.objectives import ClipMeasures, Objective, clip_measures, overlap_ratio
from tutelage.objectives.divergences.entrywise import Entrywise
from tutelage.objectives.plain import blended_logits, plain_logits
from tutelage.rewards import Verifier
from tutelage.rollouts.engines import Sampling, write
from tutelage.teachers import Teacher

_BLOCK = 64
"""Tokens whose scores are looked at together."""
_OVERLAP_ENTRIES = 16
"""Likeliest entries that are compared, as in arXiv:2604.13016."""
_RESULTS = ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "top1_agreement")
_IN_TABLE = ("reward", "written_tokens", "written_forward_kl", "written_reverse_kl")


@final
@dataclass(frozen=True, kw_only=True)
class Writer:
    """How held-out prompts are completed and judged."""

    sampling: Sampling
    tokenizer: PreTrainedTokenizerBase
    verifier: Verifier | None = None
    """None: completions are not judged."""
    num_real: int | None = None
    """Entries of the vocabulary from here on are padding, and never drawn."""
    seed: int = 0
    """The same seed gives the same random numbers to every model."""

    def write(
        self, lm: CausalLM, rows: Sequence[Rollout], *, dtype: torch.dtype | None
    ) -> list[Rollout]:
        """The rows with the model's own completions, judged where there is a verifier.

        Training notices nothing.

        Raises:
            DataError: a row lacks what the verifier needs.
        """
        generator = torch.Generator().manual_seed(self.seed)
        half = torch.autocast(lm.device.type, dtype=dtype, enabled=dtype is not None)
        with undisturbed(lm), torch.no_grad(), half:
            said = write(
                lm,
                [row.prompt.student_ids for row in rows],
                self.sampling,
                generator=generator,
                num_real=self.num_real,
            )
        written = [
            Rollout(
                prompt=row.prompt,
                completion_ids=one.ids,
                source="student",
                truncated=one.truncated,
                sampled_logp=one.logp,
            )
            for row, one in zip(rows, said, strict=True)
        ]
        return written if self.verifier is None else judged(written, self.verifier, self.tokenizer)


def judged(
    rollouts: Sequence[Rollout], verifier: Verifier, tokenizer: PreTrainedTokenizerBase
) -> list[Rollout]:
    """The rollouts with their rewards; completions are judged without their special tokens.

    Raises:
        DataError: a row lacks what the verifier needs.
    """
    texts = [
        str(tokenizer.decode(list(row.completion_ids), skip_special_tokens=True))
        for row in rollouts
    ]
    verdicts = verifier.judge(rollouts, texts)
    return [replace(r, reward=v.reward) for r, v in zip(rollouts, verdicts, strict=True)]


def written_numbers(rows: Sequence[Rollout]) -> dict[str, float]:
    """Means over the rows: reward and its standard error, length, and how completions end."""
    num_rows = len(rows)
    numbers = {
        "written_tokens": sum(len(row.completion_ids) for row in rows) / num_rows,
        "written_truncated_share": sum(row.truncated for row in rows) / num_rows,
        "written_empty_share": sum(row.is_empty for row in rows) / num_rows,
    }
    rewards = [row.reward for row in rows if row.reward is not None]
    if rewards:
        mean = math.fsum(rewards) / len(rewards)
        spread = math.fsum((reward - mean) ** 2 for reward in rewards) / max(len(rewards) - 1, 1)
        numbers["reward"] = mean
        numbers["reward_standard_error"] = math.sqrt(spread / len(rewards))
    return numbers


def evaluate_written(
    student: CausalLM,
    teacher: Teacher | None,
    batches: Iterable[TokenBatch],
    *,
    objective: Objective,
    options: EvaluationOptions | None = None,
) -> dict[str, float]:
    """How student and teacher differ on what the student wrote, each behind its own prompt.

    Divergences and entropies in nats under `written_...`; the share of both sides' likeliest 16
    entries that they have in common; and where the objective has a clip, what that clip does here.
    No gradient, and training notices nothing.

    Args:
        batches: the completions, with the teacher's view of each prompt.

    Raises:
        NumericsError: a model's output is nan.
    """
    chosen = options or EvaluationOptions()
    look = None if teacher is None else _Look(objective, chosen)
    report = evaluate_divergence(student, teacher, batches, options=chosen, look=look).numbers()
    numbers = {f"written_{name}": report[name] for name in _RESULTS if name in report}
    return numbers if look is None else numbers | look.numbers()


@final
class _Look:
    """What needs whole rows of scores, a few tokens at a time."""

    def __init__(self, objective: Objective, options: EvaluationOptions) -> None:
        self._clipping: Entrywise | None = None
        if isinstance(objective, Entrywise) and objective.clip.kind != "none":
            self._clipping = objective
        self._options = options
        self._overlaps: list[Tensor] = []
        self._clips: list[ClipMeasures] = []

    @torch.no_grad()
    def __call__(self, sides: Sides) -> None:
        for mine, theirs in _score_blocks(sides, self._options):
            self._overlaps.append(overlap_ratio(mine, theirs, num_entries=_OVERLAP_ENTRIES))
            if self._clipping is not None:
                self._clips.append(clip_measures(self._clipping, mine, theirs))

    def numbers(self) -> dict[str, float]:
        """Means over all tokens seen."""
        numbers = {"written_overlap": _mean(self._overlaps)}
        if self._clips:
            numbers |= {
                "clipped_entries_share": _mean([c.clipped_entries for c in self._clips]),
                "clipped_teacher_mass": _mean([c.clipped_teacher_mass for c in self._clips]),
                "reversed_top_share": _mean([c.reversed_top for c in self._clips]),
                "negative_loss_share": _mean([c.negative for c in self._clips]),
            }
        return numbers


def _score_blocks(
    sides: Sides, options: EvaluationOptions
) -> Iterable[tuple[Float[Tensor, "B V"], Float[Tensor, "B V"]]]:
    """Both sides' scores over the entries they share."""
    own, target = sides.student, sides.teacher
    assert target is not None  # noqa: S101  the caller has looked
    for start in range(0, len(own.hidden), _BLOCK):
        block = slice(start, start + _BLOCK)
        mine = plain_logits(own.hidden[block], own.head, options.dtype)
        theirs = _scores(target, block)
        num_shared = min(mine.shape[-1], theirs.shape[-1])
        yield mine[:, :num_shared], theirs[:, :num_shared]


def _scores(
    target: HiddenTarget | LogitsTarget | SeveralTarget, block: slice
) -> Float[Tensor, "B V"]:
    match target:
        case HiddenTarget():
            return plain_logits(target.hidden[block], target.head)
        case LogitsTarget():
            return target.logits[block, : target.num_real]
        case SeveralTarget():
            members = tuple(replace(one, hidden=one.hidden[block]) for one in target.members)
            return blended_logits(replace(target, members=members, weights=target.weights[block]))


def _mean(parts: Sequence[Tensor]) -> float:
    whole = torch.cat([part.double() for part in parts])
    return float(whole.mean())


def reward_of(numbers: Mapping[str, float]) -> dict[str, float]:
    """What the table of results shows of them."""
    return {name: numbers[name] for name in _IN_TABLE if name in numbers}
