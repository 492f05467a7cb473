"""What tokens weigh in the real step: rewards, returns, ratios, places; against autograd."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_llama
from tests.training.tiny_runs import (
    SIZES,
    gradient_of_first_step,
    objective,
    on_policy,
    settings,
    student,
    trainer,
    watched,
    weights,
)
from tutelage.core.errors import DataError
from tutelage.core.records import Rollout
from tutelage.core.run_log import read_metrics
from tutelage.models import CausalLM
from tutelage.rollouts import Order, StudentRollouts, Writing
from tutelage.rollouts.engines import Sampling
from tutelage.text import collate
from tutelage.training import Trainer


def written(num_rows: int = 8) -> list[Rollout]:
    return on_policy("student", student()).take(num_rows)


def with_advantages(rows: list[Rollout]) -> list[Rollout]:
    return [replace(row, advantage=(-1.0) ** n * (n + 1) / 3) for n, row in enumerate(rows)]


def step_gradient(rows: list[Rollout], *, fused: bool = True, **fields: Any) -> dict[str, Tensor]:
    weighting = fields.pop("weighting", {})
    lm = student()
    one = trainer(
        student=lm,
        data=rows,
        settings=settings(
            num_steps=1,
            rows_per_step=len(rows),
            max_grad_norm=None,
            weighting=weighting,
            fused=fused,
            micro_batch_tokens=40,
        ),
        **fields,
    )
    return gradient_of_first_step(one)


def logp_of_rows(lm: CausalLM, rows: list[Rollout]) -> list[Tensor]:
    """Each completion token's log-probability, row by row, by the whole model and no packing."""
    found: list[Tensor] = []
    for row in rows:
        ids = torch.tensor([[*row.prompt.student_ids, *row.completion_ids]])
        start = len(row.prompt.student_ids)
        logp = lm.model(input_ids=ids).logits[0].double().log_softmax(-1)
        labels = torch.tensor(row.completion_ids)
        found.append(logp[start - 1 : -1].gather(-1, labels[:, None])[:, 0])
    return found


def gradient_of(loss: Tensor, lm: CausalLM) -> dict[str, Tensor]:
    named = [(n, p) for n, p in lm.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named])
    return {n: g for (n, _), g in zip(named, grads, strict=True)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient.float(), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_policy_gradient_is_minus_the_advantage_times_the_score(*, fused: bool) -> None:
    rows = with_advantages(written())
    found = step_gradient(rows, objective=objective("policy_gradient"), teacher=None, fused=fused)
    lm = student()
    num_tokens = sum(len(row.completion_ids) for row in rows)
    parts = [
        -row.advantage * logp.sum()  # pyright: ignore[reportOptionalOperand]
        for row, logp in zip(rows, logp_of_rows(lm, rows), strict=True)
    ]
    assert_same(found, gradient_of(torch.stack(parts).sum() / num_tokens, lm))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("discount", [0.7, 1.0])
def test_with_returns_a_token_answers_for_all_that_follows(discount: float, *, fused: bool) -> None:
    rows = written()
    found = step_gradient(
        rows,
        objective=objective("sampled_token"),
        weighting={"return_discount": discount},
        fused=fused,
    )
    lm, other = student(), CausalLM(tiny_llama(2, **SIZES))
    num_tokens = sum(len(row.completion_ids) for row in rows)
    loss = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        taught = logp_of_rows(other, rows)
    for own, theirs in zip(logp_of_rows(lm, rows), taught, strict=True):
        costs = own.detach() - theirs
        for place in range(len(costs)):
            ahead = discount ** torch.arange(len(costs) - place)
            loss = loss + (ahead * costs[place:]).sum() * own[place]
    assert_same(found, gradient_of(loss / num_tokens, lm))


def test_returns_without_a_discount_are_the_sampled_token_itself() -> None:
    rows = written()
    plain = step_gradient(rows, objective=objective("sampled_token"))
    none = step_gradient(
        rows, objective=objective("sampled_token"), weighting={"return_discount": 0.0}
    )
    assert all(torch.equal(none[name], gradient) for name, gradient in plain.items())


def test_returns_leave_the_reported_loss_the_mean_log_ratio() -> None:
    rows = written()

    def loss(**weighting: Any) -> float:
        one = trainer(objective=objective("sampled_token"), settings=settings(weighting=weighting))
        return one.loss_on(rows)

    assert loss(return_discount=1.0) == pytest.approx(loss(), rel=1e-6)


def test_tokens_that_are_left_out_cost_nothing_and_the_mean_stays_a_mean() -> None:
    rows = [row for row in written(20) if len(row.completion_ids) > 3][:6]
    whole = trainer(settings=settings(weighting={"skip_first": 2})).loss_on(rows)
    trimmed = [
        replace(row, trained=tuple(place >= 2 for place in range(len(row.completion_ids))))
        for row in rows
    ]
    assert whole == pytest.approx(trainer(settings=settings()).loss_on(trimmed), rel=1e-6)


def test_special_tokens_are_left_out_by_name(tmp_path: Path) -> None:
    lm = student()
    run = trainer(
        student=lm,
        rollouts=on_policy("student", lm),
        settings=settings(num_steps=1, weighting={"skip_special": True}),
        special_ids=range(0, 64, 8),
        output=tmp_path,
    )
    run.train()
    (line,) = read_metrics(tmp_path / "metrics.jsonl", phase="train")
    rows = on_policy("student", student()).take(8)
    assert line["num_tokens"] == sum(token % 8 != 0 for row in rows for token in row.completion_ids)


def test_late_tokens_may_count_more_and_no_row_gains_by_it() -> None:
    rows = written()
    batch = collate(rows)
    from_step = step_gradient(rows, weighting={"position_slope": 0.8})
    plain = step_gradient(rows)
    assert any(not torch.equal(from_step[name], plain[name]) for name in plain)
    weighting = settings(weighting={"position_slope": 0.8}).weighting
    found = weighting.weighed(
        batch,
        torch.ones(len(batch.labels)),
        objective(),
        sampled_at=1.0,
        per_token=lambda _: torch.zeros(len(batch.labels)),
    )
    for row in range(batch.num_rows):
        own = found[batch.row_of == row]
        assert own.mean().item() == pytest.approx(1)
        assert own.tolist() == sorted(own.tolist())


def test_a_token_that_grew_likelier_counts_by_its_ratio_up_to_the_cap() -> None:
    rows = written()
    lm = student()
    with torch.no_grad():
        now = logp_of_rows(lm, rows)
    ratios = [0.5, 1.0, 1.5, 4.0]
    drawn = [
        replace(
            row,
            sampled_logp=tuple(
                float(x) - float(torch.tensor(ratios[place % 4]).log())
                for place, x in enumerate(logp)
            ),
        )
        for row, logp in zip(rows, now, strict=True)
    ]
    found = step_gradient(drawn, objective=objective("cross_entropy"), teacher=None,
                          weighting={"importance": {"highest": 2.0}})  # fmt: skip
    num_tokens = sum(len(row.completion_ids) for row in rows)
    loss = torch.zeros((), dtype=torch.float64)
    for logp in logp_of_rows(lm, rows):
        capped = torch.tensor([min(ratios[place % 4], 2.0) for place in range(len(logp))])
        loss = loss - (capped * logp).sum()
    assert_same(found, gradient_of(loss / num_tokens, lm))


def test_completions_drawn_at_a_temperature_have_ratios_of_one_at_it() -> None:
    lm = student()
    hot = Sampling(max_completion_tokens=8, temperature=1.7)
    prompts = [row.prompt for row in written()]
    rows = StudentRollouts(lm, prompts, Writing(sampling=hot), Order(seed=1)).take(8)
    ask: dict[str, Any] = {"objective": objective("cross_entropy"), "teacher": None}
    plain = step_gradient(rows, **ask)
    weighed = step_gradient(rows, **ask, weighting={"importance": {}}, sampled_at=1.7)
    cold = step_gradient(rows, **ask, weighting={"importance": {}})
    assert_same(weighed, plain)
    assert any(not torch.allclose(cold[name], plain[name], rtol=1e-2) for name in plain)


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        ({"objective": objective("policy_gradient")}, "advantage"),
        ({"weighting": {"importance": {}}}, "sampled log-probability"),
    ],
)
def test_rows_that_lack_what_their_weight_is_made_from_are_refused(
    fields: dict[str, Any], lacks: str
) -> None:
    rows = [replace(row, sampled_logp=None) for row in written()]
    with pytest.raises(DataError, match=f"has no {lacks}; every trained row must have one"):
        step_gradient(rows, **fields)


def rewarded(lm: CausalLM, rows_of: int, **fields: Any) -> Trainer:
    """A student that is rewarded for even tokens, four completions of each prompt."""
    prompts = [row.prompt for row in written(4)]
    writing = Writing(sampling=Sampling(max_completion_tokens=4), completions_per_prompt=rows_of)

    def judge(rollouts: Any) -> list[Rollout]:
        rewards = torch.tensor([
            sum(token % 2 == 0 for token in row.completion_ids) / len(row.completion_ids)
            for row in rollouts
        ]).view(-1, rows_of)  # fmt: skip
        advantages = (rewards - rewards.mean(1, keepdim=True)).flatten().tolist()
        judged = zip(rollouts, rewards.flatten().tolist(), advantages, strict=True)
        return [replace(row, reward=r, advantage=a) for row, r, a in judged]

    return trainer(
        student=lm,
        teacher=None,
        objective=objective("policy_gradient"),
        rollouts=StudentRollouts(lm, prompts, writing, Order(seed=2)),
        judge=judge,
        **fields,
    )


def test_a_student_learns_what_is_rewarded_and_the_log_says_so(tmp_path: Path) -> None:
    chosen = settings(num_steps=25, rows_per_step=16, learning_rate=1e-2)
    rewarded(student(), 4, settings=chosen, output=tmp_path).train()
    lines = read_metrics(tmp_path / "metrics.jsonl", phase="train")
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    assert all(0 <= reward <= 1 for reward in rewards)
    assert 0 < lines[0]["telling_share"] <= 1


def test_completions_of_one_prompt_lie_side_by_side_and_differ() -> None:
    run = rewarded(student(), 4, settings=settings(rows_per_step=16))
    rows = run.rollouts.take(16)
    for start in range(0, 16, 4):
        group = rows[start : start + 4]
        assert len({row.prompt.student_ids for row in group}) == 1
        assert len({row.completion_ids for row in group}) > 1
    assert len({row.prompt.student_ids for row in rows}) == 4


def test_how_a_step_is_cut_changes_no_policy_gradient() -> None:
    def first(tokens: int) -> dict[str, Tensor]:
        run = rewarded(student(), 4, settings=settings(rows_per_step=16, micro_batch_tokens=tokens))
        return gradient_of_first_step(run)

    whole, cut = first(10_000), first(20)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_rewarded_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    chosen = {"num_steps": 6, "rows_per_step": 8, "save_every": 3}
    whole = student()
    rewarded(whole, 4, settings=settings(**chosen), output=tmp_path / "whole").train()

    first = student()
    stopped = rewarded(first, 4, settings=settings(**chosen), output=tmp_path / "cut")

    def stop(record: Any) -> None:
        if record.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(stopped, stop)
    again = student()
    rewarded(again, 4, settings=settings(**chosen), output=tmp_path / "cut").train(resume=True)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(again)[name], weight)
