"""The numbers of an evaluation, against plain definitions, however the rows are cut."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_models import VOCABULARY, tiny_llama
from tutelage.core.errors import DataError, NumericsError
from tutelage.core.records import Prompt, Rollout, TokenBatch
from tutelage.core.targets import LogitsTarget, Target, TopKTarget
from tutelage.evaluation import EvaluationOptions, evaluate_divergence, undisturbed
from tutelage.models import CausalLM
from tutelage.objectives import from_settings
from tutelage.objectives.fused import fused_loss
from tutelage.objectives.reduce import token_weights
from tutelage.teachers import LiveTeacher, Teacher
from tutelage.text.collate import collate

STUDENT, TEACHER = tiny_llama(seed=1), tiny_llama(seed=2)


def rollouts(num_rows: int = 6) -> list[Rollout]:
    numbers = random.Random(3)  # noqa: S311 - test data

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(numbers.choices(range(VOCABULARY), k=numbers.randint(least, most)))

    return [
        Rollout(prompt=Prompt(student_ids=ids(1, 6)), completion_ids=ids(1, 9))
        for _ in range(num_rows)
    ]


def plain_logp(model, rollout: Rollout) -> torch.Tensor:
    prompt = rollout.prompt.student_ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *rollout.completion_ids]])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def plain_numbers(rows: list[Rollout]) -> dict[str, float]:
    """Every mean by its definition, token by token."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        pairs = zip(
            plain_logp(STUDENT, row), plain_logp(TEACHER, row), row.completion_ids, strict=True
        )
        for q, p, label in pairs:
            for name, value in {
                "forward_kl": (p.exp() * (p - q)).sum(),
                "reverse_kl": (q.exp() * (q - p)).sum(),
                "student_entropy": -(q.exp() * q).sum(),
                "teacher_entropy": -(p.exp() * p).sum(),
                "top1_agreement": p.argmax() == q.argmax(),
                "perplexity": -q[label],
                "teacher_perplexity": -p[label],
            }.items():
                sums.setdefault(name, []).append(float(value))
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    for name in ("perplexity", "teacher_perplexity"):
        means[name] = math.exp(means[name])
    return means


@pytest.mark.parametrize("cuts", [[6], [1, 1, 1, 1, 1, 1], [4, 2]])
def test_every_number_is_its_definition_however_the_rows_are_cut(cuts: list[int]) -> None:
    rows = rollouts()
    pieces = torch.arange(6).split(cuts)
    batches = [collate([rows[i] for i in piece]) for piece in pieces]
    report = evaluate_divergence(CausalLM(STUDENT), LiveTeacher(CausalLM(TEACHER)), batches)
    found = report.numbers()
    assert found.pop("num_tokens") == sum(len(row.completion_ids) for row in rows)
    assert found.pop("student_excluded_mass") == found.pop("teacher_excluded_mass") == 0
    assert found == pytest.approx(plain_numbers(rows), rel=1e-4)


def test_positions_count_from_the_first_completion_token() -> None:
    rows = rollouts()
    batches = [collate(rows[:2]), collate(rows[2:])]
    report = evaluate_divergence(CausalLM(STUDENT), LiveTeacher(CausalLM(TEACHER)), batches)
    curve = report.by_position
    assert curve is not None
    longest = max(len(row.completion_ids) for row in rows)
    assert curve.position == tuple(range(longest))
    for place, mean, count in zip(*curve.to_json().values(), strict=True):
        there = [row for row in rows if len(row.completion_ids) > place]
        assert count == len(there)
        expected = 0.0
        for row in there:
            q, p = plain_logp(STUDENT, row)[place], plain_logp(TEACHER, row)[place]
            expected += float((p.exp() * (p - q)).sum()) / count
        assert mean == pytest.approx(expected, rel=1e-4)
    total = sum(mean * count for mean, count in zip(curve.forward_kl, curve.count, strict=True))
    assert total / report.num_tokens == pytest.approx(report.forward_kl)


def test_an_evaluation_of_the_rows_of_a_step_is_the_loss_of_that_step() -> None:
    batch = collate(rollouts())
    student, teacher = CausalLM(STUDENT), LiveTeacher(CausalLM(TEACHER))
    weights = token_weights(
        batch.loss_mask,
        batch.row_of,
        reduction="token_mean",
        num_tokens=batch.loss_mask.sum(),
        num_rows=torch.tensor(batch.num_rows),
    )
    hidden = student.hidden(batch.student)[batch.student.predicts]
    for kind in ("forward_kl", "reverse_kl"):
        loss = fused_loss(
            hidden,
            student.head,
            teacher.score(batch),
            from_settings({"kind": kind}),
            token_weights=weights,
        ).loss
        report = evaluate_divergence(student, teacher, [batch])
        assert report.numbers()[kind] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_teacher_itself_is_at_no_distance() -> None:
    report = evaluate_divergence(
        CausalLM(TEACHER), LiveTeacher(CausalLM(TEACHER)), [collate(rollouts())]
    )
    assert report.forward_kl == pytest.approx(0, abs=1e-6)
    assert report.reverse_kl == pytest.approx(0, abs=1e-6)
    assert report.top1_agreement == 1
    assert report.perplexity == pytest.approx(report.teacher_perplexity)


def test_without_a_teacher_there_are_the_students_numbers_alone() -> None:
    rows = rollouts()
    report = evaluate_divergence(CausalLM(STUDENT), None, [collate(rows)])
    expected = plain_numbers(rows)
    assert report.perplexity == pytest.approx(expected["perplexity"], rel=1e-4)
    assert report.student_entropy == pytest.approx(expected["student_entropy"], rel=1e-4)
    assert report.forward_kl is None
    assert report.by_position is None
    assert "top1_agreement" not in report.numbers()


def test_without_a_teacher_each_score_is_computed_once() -> None:
    batch, student = collate(rollouts()), CausalLM(STUDENT)
    with FlopCounterMode(display=False) as reading, torch.no_grad():
        student.hidden(batch.student)
    with FlopCounterMode(display=False) as measuring:
        evaluate_divergence(student, None, [batch])
    num_entries, width = student.head.weight.shape
    scores = 2 * len(batch.labels) * num_entries * width
    assert measuring.get_total_flops() - reading.get_total_flops() == scores


def test_tokens_that_are_not_trained_do_not_count() -> None:
    rows = rollouts()
    batch = collate(rows)
    masked = dataclasses.replace(batch, loss_mask=batch.row_of < 3)
    student, teacher = CausalLM(STUDENT), LiveTeacher(CausalLM(TEACHER))
    found = evaluate_divergence(student, teacher, [masked])
    expected = evaluate_divergence(student, teacher, [collate(rows[:3])])
    assert found.numbers() == pytest.approx(expected.numbers(), rel=1e-5)
    assert found.by_position is not None
    assert expected.by_position is not None
    assert found.by_position.count == expected.by_position.count


def widened(model, num_extra: int, seed: int):
    """The same model with a head padded by rows that no text uses, yet with scores of their own."""
    wide = tiny_llama(seed=seed, vocab_size=VOCABULARY + num_extra)
    state = model.state_dict()
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            parameter[: state[name].shape[0]] = state[name]
    return wide


@pytest.mark.parametrize("sides", [("student",), ("teacher",), ("student", "teacher")])
def test_padding_of_the_vocabulary_changes_no_number_and_its_mass_is_reported(sides) -> None:
    rows = rollouts()
    student = widened(STUDENT, 40, seed=1) if "student" in sides else STUDENT
    teacher = widened(TEACHER, 24, seed=2) if "teacher" in sides else TEACHER
    report = evaluate_divergence(
        CausalLM(student), LiveTeacher(CausalLM(teacher), num_real=VOCABULARY), [collate(rows)]
    )
    found = report.numbers()
    masses = {}
    for side, model in (("student", student), ("teacher", teacher)):
        logp = torch.cat([plain_logp(model, row) for row in rows])
        masses[side] = float(logp.exp()[:, VOCABULARY:].sum(-1).mean())
        assert (masses[side] > 0.01) == (side in sides)
        assert found.pop(f"{side}_excluded_mass") == pytest.approx(masses[side], rel=1e-4)
    found.pop("num_tokens")
    assert found == pytest.approx(plain_numbers(rows), rel=1e-4)


def test_training_notices_nothing_of_an_evaluation() -> None:
    lm = CausalLM(tiny_llama(attention_dropout=0.3)).train()
    lm.model.model.layers[0].eval()
    modes = [module.training for module in lm.modules()]
    batch = collate(rollouts())
    torch.manual_seed(11)
    state = torch.get_rng_state()
    report = evaluate_divergence(lm, LiveTeacher(CausalLM(TEACHER)), [batch])
    again = evaluate_divergence(lm.eval(), LiveTeacher(CausalLM(TEACHER)), [batch])
    assert report == again
    assert torch.equal(state, torch.get_rng_state())
    lm.train().model.model.layers[0].eval()
    evaluate_divergence(lm, None, [batch])
    assert [module.training for module in lm.modules()] == modes
    assert all(p.grad is None for p in lm.parameters())


def test_whatever_is_drawn_inside_an_evaluation_is_drawn_again_after_it() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: S311

    with undisturbed(STUDENT):
        inside = draws()
    assert draws() == inside


def test_modes_come_back_even_when_an_evaluation_fails() -> None:
    lm = CausalLM(tiny_llama()).train()
    with pytest.raises(DataError, match="0 trained tokens; they must have at least one"):
        evaluate_divergence(lm, None, [])
    broken = CausalLM(tiny_llama()).train()
    with torch.no_grad():
        broken.model.lm_head.weight[0] = torch.nan
    with pytest.raises(NumericsError, match="on the held-out rows is nan"):
        evaluate_divergence(broken, LiveTeacher(CausalLM(TEACHER)), [collate(rollouts())])
    assert lm.training
    assert broken.training


def test_autocast_is_the_options_choice_and_not_the_callers() -> None:
    batches = [collate(rollouts())]
    student, teacher = CausalLM(STUDENT), LiveTeacher(CausalLM(TEACHER))
    expected = evaluate_divergence(student, teacher, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate_divergence(student, teacher, batches) == expected
    rounded = evaluate_divergence(
        student, teacher, batches, options=EvaluationOptions(dtype=torch.bfloat16)
    )
    assert rounded.forward_kl == pytest.approx(expected.forward_kl, rel=0.05)
    assert rounded.forward_kl != expected.forward_kl


class FixedTeacher(Teacher):
    def __init__(self, target: Target) -> None:
        self.target = target

    def score(self, batch: TokenBatch) -> Target:
        return self.target


def test_logits_do_as_well_as_hidden_states_and_a_top_k_target_is_refused() -> None:
    rows = rollouts()
    batch = collate(rows)
    logits = torch.cat([plain_logp(TEACHER, row) for row in rows]).float()
    teacher = FixedTeacher(LogitsTarget(logits=logits, labels=batch.labels))
    report = evaluate_divergence(CausalLM(STUDENT), teacher, [batch])
    assert report.forward_kl == pytest.approx(plain_numbers(rows)["forward_kl"], rel=1e-4)
    few = TopKTarget(ids=batch.labels[:, None], logp=torch.zeros(len(batch.labels), 1))
    student = CausalLM(tiny_llama()).train()
    with pytest.raises(DataError, match="answers with a TopKTarget"):
        evaluate_divergence(student, FixedTeacher(few), [batch])
    assert student.training, "a failed evaluation must hand the student back as it was"
