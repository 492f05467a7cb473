"""Importance weights beside a policy: the old student by the trainer, over who drew for it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.policies import definitions
from tests.objectives.policies.definitions import Rows
from tests.training.policy_runs import choices, dense, rewarded, written
from tests.training.test_policy_steps import gradient_of, logp_of, moved, old_lessons, step_of
from tests.training.tiny_runs import objective, watched
from tutelage.core.errors import DataError
from tutelage.core.records import Prompt, Rollout
from tutelage.objectives.on_policy import ImportanceSettings, TokenWeighting
from tutelage.objectives.policies import Grpo, Gspo, Policy
from tutelage.text import collate

RATIOS = (0.5, 1.0, 1.5, 4.0)
"""Old student / engine, token after token: one of them above the cap of 2."""


def drawn_by_an_engine(
    rows: Sequence[Rollout], old: Sequence[Tensor], ratios: Sequence[float]
) -> list[Rollout]:
    """The same rows, drawn by a program under which tokens were likelier or less so."""
    return [
        replace(
            row,
            sampled_logp=tuple(
                x - math.log(ratios[place % len(ratios)]) for place, x in enumerate(logp.tolist())
            ),
        )
        for row, logp in zip(rows, old, strict=True)
    ]


def one_step(
    rows: Sequence[Rollout], importance: dict[str, Any] | None, policy: Policy, **own: Any
) -> tuple[float, dict[str, Tensor]]:
    writer = dense(dtype=torch.float64)
    _, lessons = old_lessons(writer, list(rows))
    lm = moved(dense(dtype=torch.float64))
    chosen = choices(weighting={"importance": importance}, **own)
    return step_of(rewarded(lm, policy=policy, given=rows, settings=chosen), lessons)


@pytest.mark.parametrize("outside", ["cap", "drop"])
def test_a_policys_tokens_count_by_old_student_over_engine_up_to_the_cap(outside: str) -> None:
    writer = dense(dtype=torch.float64)
    rows = written(writer)
    old, _ = old_lessons(writer, rows)
    lm = moved(dense(dtype=torch.float64))
    advantages = [float(torch.tensor(row.advantage)) for row in rows]
    values = definitions.grpo(
        Rows(logp=logp_of(lm, rows), old=old, advantages=advantages, drift=[])
    )
    above = 2.0 if outside == "cap" else 0.0
    weighed = [
        torch.tensor([RATIOS[p % 4] if RATIOS[p % 4] <= 2 else above for p in range(len(v))]) * v
        for v in values
    ]
    expected = -definitions.mean_over_rows(weighed)
    gradient = gradient_of(expected, lm)
    drawn = drawn_by_an_engine(rows, old, RATIOS)
    loss, found = one_step(drawn, {"highest": 2.0, "outside": outside}, Grpo())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, wanted in gradient.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-7)


def test_a_policy_of_whole_completions_counts_them_by_their_product() -> None:
    writer = dense(dtype=torch.float64)
    rows = written(writer)
    old, _ = old_lessons(writer, rows)
    lm = moved(dense(dtype=torch.float64))
    advantages = [float(torch.tensor(row.advantage)) for row in rows]
    by_rows = Rows(logp=logp_of(lm, rows), old=old, advantages=advantages, drift=[])
    values = definitions.gspo(by_rows, low=0.1, high=0.1)
    ratios = (0.8, 1.1, 1.3)
    weighed = [
        v * min(math.prod(ratios[p % 3] for p in range(len(row.completion_ids))), 1.2)
        for v, row in zip(values, rows, strict=True)
    ]
    expected = -definitions.mean_over_rows(weighed)
    gradient = gradient_of(expected, lm)
    loss, found = one_step(
        drawn_by_an_engine(rows, old, ratios),
        {"highest": 1.2, "level": "sequence"},
        Gspo(clip_low=0.1, clip_high=0.1),
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, wanted in gradient.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_an_engine_that_agrees_with_the_trainer_changes_no_bit(reduction: str, level: str) -> None:
    writer = dense()
    rows = written(writer)
    old, _ = old_lessons(writer, rows)
    # What the trainer keeps is single, as what an engine says is.
    agreed = [
        replace(row, sampled_logp=tuple(logp.float().tolist()))
        for row, logp in zip(rows, old, strict=True)
    ]

    def step(importance: dict[str, Any] | None) -> tuple[float, dict[str, Tensor]]:
        _, lessons = old_lessons(dense(), agreed)
        chosen = choices(weighting={"importance": importance}, reduction=reduction)
        return step_of(rewarded(moved(dense()), given=agreed, settings=chosen), lessons)

    (loss, found), (plain, wanted) = step({"level": level}), step(None)
    assert loss == plain
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


@settings(max_examples=20)
@given(
    gaps=st.lists(st.floats(-40, 40), min_size=12, max_size=12),
    highest=st.floats(0.1, 20),
)
def test_weights_are_the_capped_ratio_whatever_the_student_is_now(
    gaps: list[float], highest: float
) -> None:
    row = Rollout(prompt=Prompt(student_ids=(1,)), completion_ids=tuple(range(len(gaps))))
    old = torch.linspace(-3, -1, len(gaps))
    drawn = old - torch.tensor(gaps)
    batch = replace(collate([row]), sampled_logp=drawn)
    weighting = TokenWeighting(importance=ImportanceSettings(highest=highest))
    plain = torch.full((len(old),), 0.25)
    found = weighting.of_old_student(batch, plain, old.clone().requires_grad_())
    assert not found.requires_grad
    assert bool((found <= 0.25 * highest * (1 + 1e-6)).all())
    ratio = (old - drawn).exp().clamp(max=highest)
    torch.testing.assert_close(found, 0.25 * ratio)


def test_rows_that_nobody_drew_are_refused() -> None:
    rows = [replace(row, sampled_logp=None) for row in written(dense())]
    with pytest.raises(DataError, match="has no sampled log-probability"):
        rewarded(given=rows, settings=choices(weighting={"importance": {}})).train()


def test_with_a_teacher_beside_it_a_run_is_corrected_in_both_parts() -> None:
    def grad_norms(importance: dict[str, Any] | None) -> list[float]:
        chosen = choices(num_steps=2, updates_per_batch=2, weighting={"importance": importance})
        run = rewarded(policy=Grpo(), teach=objective(), settings=chosen)
        return watched(run, lambda record: record.totals.grad_norm)

    plain, weighed = grad_norms(None), grad_norms({})
    # The engine and the trainer are one program here: before the first move all ratios are 1.
    assert weighed[0] == pytest.approx(plain[0], rel=1e-4)
    # Beyond it the teacher's part is weighed by how far the student has moved since it wrote.
    assert weighed[1] != pytest.approx(plain[1], rel=1e-6)
