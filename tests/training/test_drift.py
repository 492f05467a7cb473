"""How far the student is from whoever drew its tokens, as the log has it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.policy_runs import choices, dense, rewarded
from tests.training.tiny_runs import objective, on_policy, settings, student, trainer, watched
from tutelage.core.records import Rollout
from tutelage.text import collate
from tutelage.training.losses import drift_of

NAMES = ("engine_drift", "engine_drift_max", "engine_kl")


def written() -> list[Rollout]:
    return on_policy("student", student()).take(8)


def drift(rows: list[Rollout], **fields: Any) -> dict[str, float]:
    chosen = {"num_steps": 1, "rows_per_step": len(rows), "measure_drift": True}
    own = settings(**{**chosen, **fields.pop("settings", {})})
    run = trainer(student=student(), data=rows, settings=own, **fields)
    (numbers,) = watched(run, lambda record: record.numbers())
    return {name: numbers[name] for name in NAMES if name in numbers}


def shifted(row: Rollout, by: float) -> Rollout:
    assert row.sampled_logp is not None
    return replace(row, sampled_logp=tuple(logp - by for logp in row.sampled_logp))


def test_completions_of_the_student_as_it_is_have_no_drift() -> None:
    found = drift(written())
    assert 0 <= found["engine_drift"] <= found["engine_drift_max"] < 1e-5
    assert 0 <= found["engine_kl"] < 1e-9


@pytest.mark.parametrize("fused", [True, False])
def test_drift_is_the_gap_to_the_log_probabilities_that_tokens_were_drawn_with(
    *, fused: bool
) -> None:
    rows = written()
    rows = [shifted(row, 0.5 if at == 3 else -0.2) for at, row in enumerate(rows)]
    found = drift(rows, settings={"fused": fused})
    far, near = len(rows[3].completion_ids), sum(len(row.completion_ids) for row in rows)
    near -= far
    assert found["engine_drift"] == pytest.approx((0.5 * far + 0.2 * near) / (far + near), abs=1e-5)
    assert found["engine_drift_max"] == pytest.approx(0.5, abs=1e-5)
    # The ratio student / sampler: exp(0.5) where the sampler thought less of the token.
    each = (math.expm1(0.5) - 0.5, math.expm1(-0.2) + 0.2)
    assert found["engine_kl"] == pytest.approx(
        (each[0] * far + each[1] * near) / (far + near), abs=1e-5
    )


def test_tokens_that_are_not_trained_and_rows_that_nobody_drew_do_not_count() -> None:
    rows = [shifted(row, 0.3) for row in written()]
    first = rows[0]
    # Its other tokens would be far off, and are not trained.
    logp = (first.sampled_logp or ())[:1] + (9.0,) * (len(first.completion_ids) - 1)
    trained = tuple(at == 0 for at in range(len(first.completion_ids)))
    rows[0] = replace(first, sampled_logp=logp, trained=trained)
    rows[1] = replace(rows[1], sampled_logp=None, source="dataset")
    found = drift(rows)
    assert found["engine_drift"] == pytest.approx(0.3, abs=1e-5)
    assert found["engine_drift_max"] == pytest.approx(0.3, abs=1e-5)


def test_tokens_that_the_weighting_leaves_out_do_not_count() -> None:
    rows = [
        replace(row, sampled_logp=(5.0, *(shifted(row, 0.3).sampled_logp or ())[1:]))
        for row in written()
    ]
    found = drift(rows, settings={"weighting": {"skip_first": 1}})
    assert found["engine_drift_max"] == pytest.approx(0.3, abs=1e-5)


def test_where_nobody_drew_anything_there_is_no_drift_to_tell() -> None:
    assert drift([replace(row, sampled_logp=None) for row in written()]) == {}


def test_how_a_step_is_cut_changes_no_drift() -> None:
    rows = [shifted(row, 0.1 * at) for at, row in enumerate(written())]
    whole = drift(rows, settings={"micro_batch_tokens": 4096})
    assert drift(rows, settings={"micro_batch_tokens": 20}) == pytest.approx(whole, abs=1e-5)


def test_drift_is_at_the_temperature_that_tokens_were_drawn_at() -> None:
    rows = written()
    assert drift(rows, sampled_at=1.7)["engine_drift"] > 0.05


def test_measuring_changes_no_weight_and_is_left_out_unless_asked_for() -> None:
    rows = [shifted(row, 0.4) for row in written()]
    found: list[dict[str, Any]] = []
    for asked in (True, False, None):
        lm = student()
        own = settings(num_steps=2, rows_per_step=4, measure_drift=asked)
        run = trainer(student=lm, data=rows, settings=own, objective=objective("reverse_kl"))
        numbers = watched(run, lambda record: record.numbers())
        assert all(("engine_drift" in line) is bool(asked) for line in numbers)
        found.append({name: p.detach().clone() for name, p in lm.named_parameters()})
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_drift_has_no_gradient() -> None:
    batch = collate(written())
    logp = torch.zeros(len(batch.labels), requires_grad=True)
    found = drift_of(batch, logp)
    assert not found.sums.requires_grad
    assert not found.highest.requires_grad


def test_a_step_of_a_policy_tells_its_drift_at_its_own_temperature() -> None:
    run = rewarded(dense(), settings=choices(num_steps=1, measure_drift=True))
    (numbers,) = watched(run, lambda record: record.numbers())
    assert 0 < numbers["engine_drift_max"] < 1e-5
