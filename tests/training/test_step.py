"""One step through the real Trainer: however it is cut, the same mean and the same gradient."""

from typing import Any

import pytest
import torch

from tests.training.tiny_runs import (
    gradient_of_first_step,
    losses,
    objective,
    rows,
    settings,
    student,
    teacher,
    trainer,
    watched,
    weights,
)
from tutelage.core.errors import ConfigError, NumericsError
from tutelage.core.records import Prompt, Rollout, TokenBatch
from tutelage.core.targets import HiddenTarget, LogitsTarget
from tutelage.objectives import Objective, Taid
from tutelage.objectives.fused import FusedOptions
from tutelage.objectives.plain import plain_per_token
from tutelage.objectives.reduce import token_weights
from tutelage.rollouts.dataset import DatasetRollouts
from tutelage.teachers.teacher import Teacher
from tutelage.text.collate import collate, cut
from tutelage.training import Ranks, Trainer
from tutelage.training.losses import LossModule

EIGHT = rows(8, seed=5)
WAYS = {1: 10**6, 2: 45, 4: 25, 8: 1}
"""Micro-batches wanted, and a budget of tokens that cuts the eight rows so."""


def one_step(**overrides: Any) -> dict[str, Any]:
    return {"num_steps": 1, "rows_per_step": 8, "max_grad_norm": None, **overrides}


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("num_pieces", "budget"), WAYS.items())
def test_the_budgets_of_these_tests_really_cut_the_step_so(num_pieces: int, budget: int) -> None:
    assert len(cut(EIGHT, max_tokens=budget)) == num_pieces


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("kind", ["forward_kl", "cross_entropy"])
def test_cutting_a_step_into_micro_batches_changes_no_gradient(kind: str, reduction: str) -> None:
    def run(budget: int) -> Trainer:
        chosen = settings(**one_step(micro_batch_tokens=budget, reduction=reduction))
        return trainer(data=EIGHT, objective=objective(kind), settings=chosen)

    whole = gradient_of_first_step(run(WAYS[1]))
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-2
    for num_pieces in (2, 4, 8):
        close(gradient_of_first_step(run(WAYS[num_pieces])), whole)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_the_loss_of_a_step_is_the_mean_of_its_definition(reduction: str) -> None:
    def nats_of(row: Rollout) -> list[float]:
        batch = collate([row])
        with torch.no_grad():
            hidden = student().hidden(batch.student)[batch.student.predicts]
            found = plain_per_token(
                hidden, student().head, teacher().score(batch), objective(), FusedOptions()
            )
        return found.tolist()

    each = [nats_of(row) for row in EIGHT]
    if reduction == "token_mean":
        expected = sum(map(sum, each)) / sum(map(len, each))
    else:
        expected = sum(sum(nats) / len(nats) for nats in each if nats) / sum(map(bool, each))
    chosen = settings(**one_step(micro_batch_tokens=38, reduction=reduction))
    assert losses(trainer(data=EIGHT, settings=chosen)) == pytest.approx([expected], rel=1e-5)


class Uniform(Objective):
    """Costs the same for every token, whatever the models say."""

    nats: float

    def from_logits(
        self, student_logits: Any, teacher_logits: Any, labels: Any = None
    ) -> torch.Tensor:
        return student_logits.sum(-1) * 0 + self.nats


@pytest.mark.parametrize("num_rows", [1, 3, 8])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_a_uniform_cost_is_the_loss_whatever_the_number_of_tokens(
    num_rows: int, reduction: str
) -> None:
    chosen = settings(**one_step(rows_per_step=num_rows, reduction=reduction))
    run = trainer(data=EIGHT, objective=Uniform(nats=0.37), settings=chosen)
    assert losses(run) == pytest.approx([0.37], rel=1e-6)


def untrained(row: Rollout) -> Rollout:
    return Rollout(
        prompt=row.prompt,
        completion_ids=row.completion_ids,
        trained=(False,) * len(row.completion_ids),
    )


def test_rows_without_a_trained_token_weigh_nothing_and_break_nothing() -> None:
    mixed = [row for pair in zip(EIGHT[:4], map(untrained, EIGHT[4:]), strict=True) for row in pair]
    for budget in (1, 10**6):
        chosen = settings(**one_step(micro_batch_tokens=budget, reduction="sequence_mean"))
        few = settings(
            **one_step(micro_batch_tokens=budget, reduction="sequence_mean", rows_per_step=4)
        )
        close(
            gradient_of_first_step(trainer(data=mixed, settings=chosen)),
            gradient_of_first_step(trainer(data=EIGHT[:4], settings=few)),
        )


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_without_any_trained_token_has_loss_zero_and_gradients_of_zero(
    *, fused: bool
) -> None:
    run = trainer(
        data=[untrained(row) for row in EIGHT],
        settings=settings(**one_step(micro_batch_tokens=38, fused=fused)),
    )
    gradient = gradient_of_first_step(run)
    assert losses(trainer(data=[untrained(r) for r in EIGHT], settings=run.settings)) == [0.0]
    assert set(gradient) == {name for name, _ in run.student.named_parameters()}
    assert all(float(g.abs().max()) == 0 for g in gradient.values())


def test_evaluating_on_the_training_batch_gives_the_training_loss() -> None:
    for reduction in ("token_mean", "sequence_mean"):
        chosen = settings(**one_step(micro_batch_tokens=38, reduction=reduction))
        ahead = trainer(data=EIGHT, settings=chosen).loss_on(EIGHT)
        assert losses(trainer(data=EIGHT, settings=chosen)) == pytest.approx([ahead], rel=1e-6)


def test_a_student_that_is_its_teacher_has_loss_zero_and_no_gradient() -> None:
    same = student()
    gradient = gradient_of_first_step(
        trainer(student=same, teacher=teacher_of(1), settings=settings(**one_step()))
    )
    assert max(float(g.abs().max()) for g in gradient.values()) < 1e-6


def teacher_of(seed: int) -> Teacher:
    from tests.tiny_models import tiny_llama
    from tests.training.tiny_runs import SIZES
    from tutelage.models.causal_lm import CausalLM
    from tutelage.teachers.live import LiveTeacher

    return LiveTeacher(CausalLM(tiny_llama(seed, **SIZES)))


@pytest.mark.parametrize("move", [None, Taid(t_start=0.6)])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "cross_entropy"])
def test_the_fused_and_the_plain_path_hand_the_optimizer_the_same(
    kind: str, move: Taid | None
) -> None:
    if kind == "cross_entropy" and move is not None:
        return
    moves = {} if move is None else {"move": move}
    fused, plain = (
        gradient_of_first_step(
            trainer(objective=objective(kind), settings=settings(**one_step(fused=fused)), **moves)
        )
        for fused in (True, False)
    )
    close(fused, plain)


def test_what_an_adaptive_clock_hears_is_the_cross_entropy_to_the_moved_target() -> None:
    move, t = Taid(schedule="adaptive"), 0.4
    run = trainer(data=EIGHT, move=move, settings=settings(**one_step(micro_batch_tokens=38)))
    heard = watched(run, lambda record: record.totals.moved_cross_entropy)

    batch = collate(EIGHT)
    with torch.no_grad():
        lm, target = student(), teacher().score(batch)
        student_logits = lm.hidden(batch.student)[batch.student.predicts] @ lm.head.weight.T
        moved = move.moved(student_logits, target.hidden @ target.head.weight.T, t=t)
        expected = -(moved.exp() * student_logits.log_softmax(-1)).sum(-1).mean()
    assert heard == pytest.approx([float(expected)], rel=1e-5)


class BrokenTeacher(Teacher):
    """Answers, but with a nan for one row of the data."""

    def __init__(self, at: str, value: float) -> None:
        self._honest = teacher()
        self._at = at
        self._value = value

    def score(self, batch: TokenBatch) -> LogitsTarget:
        target = self._honest.score(batch)
        logits = (target.hidden @ target.head.weight.T).detach()
        for row, key in enumerate(batch.keys):
            if key == self._at:
                logits[batch.row_of == row] = self._value
        return LogitsTarget(logits=logits, labels=target.labels)


def test_a_nan_from_the_teacher_names_the_row_and_the_teacher() -> None:
    before = student()
    broken = EIGHT[3]
    run = trainer(
        data=EIGHT,
        student=before,
        teacher=BrokenTeacher(collate([broken]).keys[0], float("nan")),
        settings=settings(**one_step(micro_batch_tokens=38)),
    )
    untouched = weights(before)
    with pytest.raises(
        NumericsError, match=rf"Step 1: .*1 row.*\({broken.prompt.name}\): the teacher's"
    ):
        run.train()
    assert all(torch.equal(p, untouched[name]) for name, p in before.named_parameters())


def test_an_infinite_divergence_of_finite_models_is_named_as_such() -> None:
    class RuledOut(Objective):
        def from_logits(
            self, student_logits: Any, teacher_logits: Any, labels: Any = None
        ) -> torch.Tensor:
            return student_logits.sum(-1) + torch.inf

    with pytest.raises(NumericsError, match="both models' answers are finite"):
        trainer(objective=RuledOut(), settings=settings(**one_step())).train()


def test_a_nan_in_the_students_weights_names_the_student() -> None:
    lm = student()
    with torch.no_grad():
        lm.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"8 row.*the student's hidden states are nan"):
        trainer(student=lm, settings=settings(**one_step())).train()


def test_a_gradient_that_is_not_finite_names_the_weight_and_moves_nothing() -> None:
    class Steep(Objective):
        """Finite everywhere, with a slope of infinity."""

        def from_logits(
            self, student_logits: Any, teacher_logits: Any, labels: Any = None
        ) -> torch.Tensor:
            return (student_logits.sum(-1) * 0).abs().sqrt()

    lm = student()
    untouched = weights(lm)
    with pytest.raises(NumericsError, match=r"gradient is not finite in .* weight\(s\), the first"):
        trainer(student=lm, objective=Steep(), settings=settings(**one_step())).train()
    assert all(torch.equal(p, untouched[name]) for name, p in lm.named_parameters())


def test_bf16_computes_over_weights_that_stay_in_fp32() -> None:
    lm = student()
    exact = gradient_of_first_step(trainer(student=lm, settings=settings(**one_step())))
    lm = student()
    rounded = gradient_of_first_step(
        trainer(student=lm, settings=settings(**one_step(precision="bf16")))
    )
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    assert {g.dtype for g in rounded.values()} == {torch.float32}
    size = torch.cat([g.flatten() for g in exact.values()])
    error = torch.cat([(rounded[name] - g).flatten() for name, g in exact.items()])
    assert 1e-5 < float(error.norm() / size.norm()) < 0.05


def test_an_objective_of_labels_alone_asks_no_teacher() -> None:
    class Silent(Teacher):
        def score(self, batch: TokenBatch) -> HiddenTarget:
            raise AssertionError

    assert not objective("cross_entropy").needs_teacher
    with_silent = trainer(
        teacher=Silent(), objective=objective("cross_entropy"), settings=settings(**one_step())
    )
    without = trainer(
        teacher=None, objective=objective("cross_entropy"), settings=settings(**one_step())
    )
    close(gradient_of_first_step(with_silent), gradient_of_first_step(without))
    both = {"objective": {"kind": "cross_entropy"}, "weight": 0.5}
    other = {"objective": {"kind": "forward_kl"}, "weight": 0.5}
    assert objective("weighted_sum", parts=[both, other]).needs_teacher
    assert not objective("weighted_sum", parts=[both]).needs_teacher
    assert objective("cross_entropy", labels="teacher").needs_teacher


def test_contradictions_are_refused_before_anything_moves() -> None:
    with pytest.raises(ConfigError, match="teacher is missing"):
        trainer(teacher=None).train()
    with pytest.raises(ConfigError, match="no teacher whose target could move"):
        trainer(objective=objective("cross_entropy"), move=Taid()).train()


def test_a_step_of_so_many_tokens_takes_rows_until_they_are_together() -> None:
    run = trainer(settings=settings(num_steps=4, tokens_per_step=40))
    counted = watched(run, lambda record: record.totals.num_tokens)
    longest = max(len(row.completion_ids) for row in rows())
    assert all(40 <= count < 40 + longest for count in counted)


def test_rows_without_a_single_trained_token_do_not_hold_up_a_step_of_tokens() -> None:
    run = trainer(
        data=[untrained(row) for row in EIGHT], settings=settings(num_steps=1, tokens_per_step=40)
    )
    assert losses(run) == [0.0]


def test_nothing_of_the_teacher_gets_a_gradient() -> None:
    lm = student()
    module = LossModule(lm, objective(), settings(), move=Taid())
    batch = collate(EIGHT)
    target = teacher().score(batch)
    share = module(batch, target, uniform(batch), 0.5).share
    assert not target.hidden.requires_grad
    share.backward()
    assert target.head.weight.grad is None


def uniform(batch: TokenBatch) -> torch.Tensor:
    return token_weights(
        batch.loss_mask,
        batch.row_of,
        reduction="token_mean",
        num_tokens=batch.loss_mask.sum(),
        num_rows=torch.tensor(batch.num_rows),
    )


def test_a_prompt_alone_makes_no_step_smaller_than_its_rows() -> None:
    # The denominator is counted after the rollouts are there: short answers, small denominator.
    short = [Rollout(prompt=Prompt(student_ids=(5, 6, 7)), completion_ids=(8,)) for _ in range(8)]
    source = DatasetRollouts(short, shuffle=False)
    run = trainer(rollouts=source, objective=Uniform(nats=2.0), settings=settings(**one_step()))
    assert losses(run) == pytest.approx([2.0])
    assert isinstance(run.ranks, Ranks)
