"""Clocks keep to the published traces, move once a step, and come back bit for bit."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.objectives import Taid
from tutelage.training import TaidClock, TrainingSettings, learning_rate_at

LOSSES = (2.0, 1.8, 1.9, 1.5)


def trace(clock: TaidClock, losses: tuple[float, ...] | list[float]) -> list[float]:
    """t after each step."""
    after: list[float] = []
    for step, loss in enumerate(losses):
        clock.move(loss=loss, step=step)
        after.append(clock.t)
    return after


def adaptive(num_steps: int, **settings: object) -> TaidClock:
    return TaidClock(Taid(schedule="adaptive", **settings), num_steps=num_steps)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("alpha", "num_steps", "expected"),
    [
        (5e-4, 1_000_000, [0.4, 0.400150075, 0.4003000701, 0.4004501851]),
        (5e-4, 10, [0.4, 0.46, 0.52, 0.58]),
        (0.5, 100, [0.4, 0.550075, 0.6625806834, 0.7470424476]),
    ],
)
def test_the_adaptive_clock_keeps_to_the_golden_traces(
    alpha: float, num_steps: int, expected: list[float]
) -> None:
    clock = adaptive(num_steps, alpha=alpha)
    momenta = []
    for step, (loss, t) in enumerate(zip(LOSSES, expected, strict=True)):
        clock.move(loss=loss, step=step)
        momenta.append(clock.state_dict()["momentum"])
        assert clock.t == pytest.approx(t, abs=1e-9)
    assert momenta == pytest.approx([0, 0.001, 0.00043444, 0.00253536], abs=1e-8)


def test_the_first_loss_is_only_stored() -> None:
    clock = adaptive(100, alpha=0.5)
    clock.move(loss=2.0, step=0)
    assert clock.t == 0.4
    assert clock.state_dict()["loss_before"] == 2.0
    assert clock.state_dict()["momentum"] == 0


losses = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(losses, st.sampled_from(["linear", "adaptive", "exponential", "constant"]))
def test_t_never_falls_and_never_passes_its_end(heard: list[float], schedule: str) -> None:
    settings = Taid(schedule=schedule, t_start=0.2, t_end=0.9, alpha=0.3)
    seen = [settings.t_start, *trace(TaidClock(settings, num_steps=len(heard)), heard)]
    assert all(before <= after for before, after in itertools.pairwise(seen))
    assert all(0.2 <= t <= 0.9 for t in seen)


@given(losses)
def test_no_schedule_that_moves_falls_behind_the_straight_line(heard: list[float]) -> None:
    line = trace(TaidClock(Taid(), num_steps=len(heard)), heard)
    assert line == pytest.approx([0.4 + 0.6 * step / len(heard) for step in range(len(heard))])
    for schedule in ("adaptive", "exponential"):
        other = trace(TaidClock(Taid(schedule=schedule), num_steps=len(heard)), heard)
        assert all(mine >= floor for mine, floor in zip(other, line, strict=True))


@pytest.mark.parametrize("num_steps", [200, 1000, 4000])
def test_the_papers_alpha_leaves_runs_of_up_to_4000_steps_exactly_linear(num_steps: int) -> None:
    heard = [2.0 * (1 + 0.1 * math.sin(7.0 * step)) for step in range(num_steps)]
    clock = adaptive(num_steps)
    assert trace(clock, heard) == trace(TaidClock(Taid(), num_steps=num_steps), heard)
    assert clock.num_adaptive_leads == 0


def test_a_longer_run_is_led_by_the_adaptive_term() -> None:
    clock = adaptive(16000)
    after = trace(clock, [2.0 * (1 + 0.1 * math.sin(7.0 * step)) for step in range(16000)])
    assert after[4000] == pytest.approx(0.778, abs=5e-3)
    assert after[8000] == pytest.approx(0.918, abs=5e-3)
    assert clock.num_adaptive_leads / 16000 == pytest.approx(0.98, abs=0.01)


def test_alpha_auto_is_twice_the_rate_over_the_steps_and_bends_like_the_exponential() -> None:
    clock = adaptive(1000, alpha="auto", rate=3.0)
    assert clock.alpha == 2 * 3.0 / 1000
    bent = trace(clock, [2.0] * 1000)
    exponential = trace(TaidClock(Taid(schedule="exponential"), num_steps=1000), [2.0] * 1000)
    assert bent == pytest.approx(exponential, abs=2e-3)
    assert exponential[500] == pytest.approx(1 - 0.6 * math.exp(-1.5))


def test_a_constant_clock_stays() -> None:
    assert (
        trace(TaidClock(Taid(schedule="constant", t_start=0.3), num_steps=4), LOSSES) == [0.3] * 4
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_counted(loss: float) -> None:
    clock = adaptive(100, alpha=0.5)
    trace(clock, LOSSES)
    before = clock.state_dict()
    clock.move(loss=loss, step=4)
    assert clock.state_dict() == {**before, "num_skipped": 1}
    clock.move(loss=1.4, step=5)
    assert clock.t > before["t"]


def test_a_loss_that_grows_a_thousandfold_overflows_nothing() -> None:
    clock = adaptive(100, alpha=0.5, momentum=0.0)
    assert all(map(math.isfinite, trace(clock, [1e-9, 1e9, 1e-9, 0.0, 1.0])))


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_clock_comes_back_bit_for_bit(cut: int) -> None:
    unbroken = adaptive(100, alpha=0.5)
    expected = trace(unbroken, LOSSES)
    first = adaptive(100, alpha=0.5)
    trace(first, LOSSES[:cut])
    resumed = adaptive(100, alpha=0.5)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = []
    for step in range(cut, 4):
        resumed.move(loss=LOSSES[step], step=step)
        after.append(resumed.t)
    assert after == expected[cut:]
    assert resumed.state_dict() == unbroken.state_dict()


def rates(**settings: object) -> list[float]:
    chosen = TrainingSettings(learning_rate=1.0, **settings)
    return [learning_rate_at(step, chosen) for step in range(chosen.num_steps)]


def test_each_schedule_falls_as_its_name_says() -> None:
    assert rates(num_steps=4, schedule="constant") == [1, 1, 1, 1]
    assert rates(num_steps=4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    cosine = [(1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    assert rates(num_steps=4, schedule="cosine") == pytest.approx(cosine)


def test_the_warm_up_rises_to_the_highest_rate_and_the_schedule_starts_behind_it() -> None:
    assert rates(num_steps=8, schedule="linear", warmup_steps=4) == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    )


def test_a_final_share_is_what_the_schedule_falls_towards() -> None:
    shares = rates(num_steps=1000, schedule="cosine", final_learning_rate_share=0.1)
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(a > b for a, b in itertools.pairwise(shares))


def test_no_step_has_a_rate_of_zero() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert min(rates(num_steps=50, schedule=schedule, warmup_steps=7)) > 0
