"""How far a student is from a teacher whose tokenizer is another: bits a byte, and by groups."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tutelage.core.crossing import Coverage
from tutelage.core.errors import DataError
from tutelage.core.records import TokenBatch
from tutelage.core.targets import OtherVocabularyTarget, Target
from tutelage.evaluation.divergence import DivergenceReport, EvaluationOptions
from tutelage.evaluation.undisturbed import undisturbed
from tutelage.models import CausalLM
from tutelage.objectives import AlignedKL, Objective
from tutelage.objectives.fused import fused_measures
from tutelage.objectives.groupwise import groupwise_per_token
from tutelage.teachers import Teacher

_MEASURE = AlignedKL(rest_weight=0)


def evaluate_crossed(
    student: CausalLM,
    teacher: Teacher,
    batches: Iterable[TokenBatch],
    *,
    objective: Objective,
    options: EvaluationOptions | None = None,
) -> DivergenceReport:
    """Measure a student beside a teacher that reads the same text in other tokens.

    Perplexities are per token and so are no match; bits a byte are: each side's own surprise at
    the groups that both can say, ends of texts included, over the bytes of these. `aligned_kl` is
    the forward KL over each group's outcomes, and `held_out_loss` the objective's own value, both
    as means over trained tokens like a step's loss.

    Raises:
        DataError: there is no token to measure, or the teacher has the student's tokenizer.
    """
    chosen = options or EvaluationOptions()
    sums: dict[str, float] = {}
    coverage = Coverage()
    with undisturbed(student), torch.no_grad():
        for batch in batches:
            target = replace(_other(teacher.score(batch)), bridge=student.bridge)
            coverage += target.coverage
            for name, value in _sums(student, target, batch, objective, chosen).items():
                sums[name] = sums.get(name, 0.0) + value
    if not coverage.num_tokens:
        raise DataError(
            "The held-out rows have 0 trained tokens; they must have at least one. "
            "Check evaluation.num_rows and the data."
        )
    mean = {name: value / coverage.num_tokens for name, value in sums.items()}
    num_bits = math.log(2) * max(coverage.num_aligned_bytes, 1)
    shares = coverage.numbers()
    return DivergenceReport(
        num_tokens=coverage.num_tokens,
        perplexity=math.exp(min(mean["surprise"], 700.0)),
        student_entropy=mean["entropy"],
        bits_per_byte=sums["student_aligned"] / num_bits,
        teacher_bits_per_byte=sums["teacher_aligned"] / num_bits,
        aligned_kl=mean["aligned_kl"],
        held_out_loss=mean["loss"],
        aligned_token_share=shares["aligned_token_share"],
        aligned_byte_share=shares["aligned_byte_share"],
    )


def _sums(
    student: CausalLM,
    target: OtherVocabularyTarget,
    batch: TokenBatch,
    objective: Objective,
    options: EvaluationOptions,
) -> dict[str, float]:
    """Over the batch's trained tokens, in nats."""
    view, half = batch.student, options.dtype
    with torch.autocast(view.input_ids.device.type, dtype=half, enabled=half is not None):
        hidden = student.hidden(view)[view.predicts]
    head = replace(student.head, num_real=target.words.num_student)
    mine = fused_measures(hidden, head, None, labels=batch.labels, options=options.fused)
    teacher, groups = target.teacher, target.groups
    theirs = fused_measures(
        teacher.hidden, teacher.head, None, labels=teacher.labels, options=options.fused
    )
    assert mine.student_label_logp is not None  # noqa: S101  labels were given
    assert theirs.student_label_logp is not None  # noqa: S101
    surprise = -mine.student_label_logp.double()
    in_groups = _inside(groups.student_first, groups.student_count, len(surprise))
    their_surprise = -theirs.student_label_logp.double()
    theirs_in_groups = _inside(groups.teacher_first, groups.teacher_count, len(their_surprise))
    trained = batch.loss_mask

    def value(one: Objective) -> float:
        nats = groupwise_per_token(hidden, head, target, one, options=options.fused)
        return float(nats.double()[trained].sum())

    return {
        "surprise": float(surprise[trained].sum()),
        "entropy": float(mine.student_entropy.double()[trained].sum()),
        "student_aligned": float(surprise[in_groups].sum()),
        "teacher_aligned": float(their_surprise[theirs_in_groups].sum()),
        "aligned_kl": value(_MEASURE),
        "loss": value(objective),
    }


def _inside(
    first: Int[Tensor, " G"], count: Int[Tensor, " G"], num_rows: int
) -> Bool[Tensor, " N"]:
    """Which rows are in a group."""
    edges = torch.zeros(num_rows + 1, dtype=torch.long, device=first.device)
    edges.index_add_(0, first, torch.ones_like(first))
    edges.index_add_(0, first + count, -torch.ones_like(first))
    return edges.cumsum(0)[:-1] > 0


def _other(target: Target) -> OtherVocabularyTarget:
    if not isinstance(target, OtherVocabularyTarget):
        raise DataError(
            f"The teacher answers with a {type(target).__name__}; it must be an "
            "OtherVocabularyTarget. Use evaluate_divergence for a teacher of the same tokenizer."
        )
    return target
