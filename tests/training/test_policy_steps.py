"""Policies in the real step, on a tiny student: against autograd through the whole model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.policies import definitions
from tests.objectives.policies.definitions import Rows
from tests.tiny_models import tiny_llama
from tests.training.policy_runs import (
    GROUP,
    TEMPERATURE,
    choices,
    dense,
    mixture,
    rewarded,
    routers_of,
    written,
)
from tests.training.tiny_runs import SIZES, gradient_of_first_step, objective, watched
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import Rollout
from tutelage.models import CausalLM
from tutelage.objectives import RewardTemperature, reward_temperature
from tutelage.objectives.policies import DrGrpo, Gmpo, Grpo, Gspo, Policy, PrGrpo, Rspo
from tutelage.recipes.rewarded import routers_to_watch
from tutelage.text import collate
from tutelage.training import Trainer
from tutelage.training.policy import OldTokens
from tutelage.training.reuse import Lesson, Supply

POLICIES: dict[str, tuple[Policy, Any]] = {
    "grpo": (Grpo(), definitions.grpo),
    "gspo": (
        Gspo(clip_low=0.1, clip_high=0.1),
        lambda rows: definitions.gspo(rows, low=0.1, high=0.1),
    ),
    "gmpo": (Gmpo(clip=0.2), lambda rows: definitions.gmpo(rows, clip=0.2)),
}


def logp_of(lm: CausalLM, rows: list[Rollout], temperature: float = TEMPERATURE) -> list[Tensor]:
    """Each token's log-probability, row by row, by the whole model and no packing."""
    found: list[Tensor] = []
    for row in rows:
        ids = torch.tensor([[*row.prompt.student_ids, *row.completion_ids]])
        logits = lm.model(input_ids=ids).logits[0, len(row.prompt.student_ids) - 1 : -1]
        logp = (logits.double() / temperature).log_softmax(-1)
        found.append(logp.gather(-1, torch.tensor(row.completion_ids)[:, None])[:, 0])
    return found


def logits_of(lm: CausalLM, row: Rollout) -> Tensor:
    ids = torch.tensor([[*row.prompt.student_ids, *row.completion_ids]])
    return lm.model(input_ids=ids).logits[0, len(row.prompt.student_ids) - 1 : -1].double()


def moved(lm: CausalLM, *, by: float = 0.02) -> CausalLM:
    """The student after some steps on other rows."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in lm.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((by * noise).to(parameter.dtype))
    return lm


def step_of(run: Trainer, lessons: list[Lesson]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one step on these lessons, by the real loop."""
    original = Supply.collect
    losses: list[float] = []

    def collect(self):
        found = self._window(lessons)
        return replace(found, numbers={}, fresh=[])

    Supply.collect = collect
    run.settings = choices(
        **{
            **run.settings.model_dump(exclude_unset=True),
            "num_steps": 1,
            "max_grad_norm": None,
            "micro_batch_tokens": 40,
        }
    )
    run.hooks = [lambda e: losses.append(e.record.totals.loss) if hasattr(e, "record") else None]
    try:
        gradient = gradient_of_first_step(run)
    finally:
        Supply.collect = original
    return losses[0], gradient


def old_lessons(lm: CausalLM, rows: list[Rollout], *, picked: list[bool] | None = None):
    with torch.no_grad():
        old = logp_of(lm, rows)
    picked = picked or [False] * len(rows)
    return old, [
        Lesson(rollout=row, picked=chosen, old=OldTokens(logp=logp.to(lm.dtype)))
        for row, logp, chosen in zip(rows, old, picked, strict=True)
    ]


def gradient_of(loss: Tensor, lm: CausalLM) -> dict[str, Tensor]:
    named = [(n, p) for n, p in lm.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named])
    return {n: g for (n, _), g in zip(named, grads, strict=True)}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("name", "reduction"),
    # A mean over tokens of what belongs to rows is nobody's definition.
    [*((name, "sequence_mean") for name in POLICIES), ("grpo", "token_mean")],
)
def test_a_step_has_the_value_and_gradient_of_the_definition_in_float64(
    name: str, reduction: str, *, fused: bool
) -> None:
    policy, defined = POLICIES[name]
    writer = dense(dtype=torch.float64)
    rows = written(writer)
    old, lessons = old_lessons(writer, rows)
    lm = moved(dense(dtype=torch.float64))
    logp = logp_of(lm, rows)
    advantages = [float(torch.tensor(row.advantage)) for row in rows]
    values = defined(Rows(logp=logp, old=old, advantages=advantages, drift=[]))
    mean = getattr(definitions, "mean_over_" + {"s": "rows", "t": "tokens"}[reduction[0]])
    expected = -mean(values)
    run = rewarded(
        lm, policy=policy, given=rows, settings=choices(reduction=reduction, fused=fused)
    )
    gradient = gradient_of(expected, lm)
    loss, found = step_of(run, lessons)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-9)
    for parameter, wanted in gradient.items():
        torch.testing.assert_close(found[parameter], wanted, rtol=1e-5, atol=2e-8)


def test_some_tokens_of_that_step_are_clipped_and_some_are_not() -> None:
    writer = dense()
    rows = written(writer)
    _, lessons = old_lessons(writer, rows)
    run = rewarded(moved(dense()), given=rows)
    numbers: list[dict[str, float]] = []
    run.hooks = []
    original = Supply.collect
    Supply.collect = lambda self: replace(self._window(lessons), numbers={}, fresh=[])
    try:
        numbers = watched(
            replace(run, settings=choices(num_steps=1)), lambda r: dict(r.totals.measures)
        )
    finally:
        Supply.collect = original
    (first,) = numbers
    assert 0.05 < first["clip_fraction"] < 0.95
    assert first["approx_kl"] > 0
    assert first["ratio_max"] > 1.2


def test_without_a_step_in_between_the_ratio_is_one_to_the_last_bit() -> None:
    for lm, routers in ((dense(), None), (mixture(), True)):
        run = rewarded(
            lm,
            watch_routers=routers_of(lm) if routers else None,
            settings=choices(num_steps=4, updates_per_batch=2, micro_batch_tokens=48),
        )
        found = watched(run, lambda r: dict(r.totals.measures))
        for first in (found[0], found[2]):
            assert first["ratio_mean"] == 1
            assert first["ratio_max"] == 1
            assert first["approx_kl"] == 0
            assert first["clip_fraction"] == 0
            assert first.get("routing_shift", 0) == 0
        for second in (found[1], found[3]):
            assert second["approx_kl"] > 0
            assert ("routing_shift" in second) == bool(routers)
            assert second.get("routing_shift", 1) > 0


def test_one_step_for_each_batch_is_the_policy_gradient_that_was_there_before() -> None:
    rows = written(dense())
    settings = choices(num_steps=1, micro_batch_tokens=40)
    new = gradient_of_first_step(rewarded(dense(), given=rows, settings=settings))
    plain = replace(rewarded(dense(), given=rows, settings=settings), policy=None)
    old = gradient_of_first_step(plain)
    for name, gradient in old.items():
        torch.testing.assert_close(new[name], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("by", ["suppression", "goodness"])
def test_pr_grpo_is_grpo_bit_for_bit_where_nothing_is_to_be_suppressed(by: str) -> None:
    def trajectory(policy: Policy) -> list[tuple[float, float]]:
        lm = mixture()
        run = rewarded(
            lm,
            policy=policy,
            watch_routers=routers_of(lm),
            settings=choices(num_steps=4, updates_per_batch=2, micro_batch_tokens=48),
        )
        if by == "goodness":
            inner = run.judge
            run.judge = lambda rows: [replace(r, advantage=abs(r.advantage)) for r in inner(rows)]
        return watched(run, lambda r: (r.totals.loss, r.totals.grad_norm))

    plain = trajectory(Grpo())
    assert trajectory(PrGrpo(suppression=0.0 if by == "suppression" else 5.0)) == plain
    if by == "suppression":
        suppressed = trajectory(PrGrpo(suppression=5.0))
        # Nothing has shifted on the first step of the first batch; on its second, it has.
        assert suppressed[0] == plain[0]
        assert suppressed[1] != plain[1]


@pytest.mark.parametrize("policy", [PrGrpo(suppression=3.0), Rspo(lowest=0.2)], ids=["pr", "rspo"])
def test_a_shift_of_the_routers_reaches_the_gradient_as_a_constant(policy: Policy) -> None:
    writer = mixture()
    rows = written(writer)
    lm = moved(mixture(), by=0.05)
    heard = {}
    for key, one in (("old", writer), ("new", lm)):
        per_row = []
        for row in rows:
            view = collate([row]).student
            with torch.no_grad(), routers_of(one)() as tap:
                one.hidden(view)
            seen = tap.of(view)
            per_row.append([(p[view.predicts], c[view.predicts]) for p, c in seen.layers])
        heard[key] = per_row
    with torch.no_grad():
        old = logp_of(writer, rows)
    lessons = [
        Lesson(
            rollout=row,
            old=OldTokens(
                logp=logp.float(),
                probabilities=tuple(p for p, _ in layers),
                chosen=tuple(c for _, c in layers),
            ),
        )
        for row, logp, layers in zip(rows, old, heard["old"], strict=True)
    ]
    if isinstance(policy, PrGrpo):
        drift = [
            torch.stack([(a - b).norm(dim=-1) for (a, _), (b, _) in zip(new, then, strict=True)])
            .mean(0)
            .double()
            for new, then in zip(heard["new"], heard["old"], strict=True)
        ]
        defined = lambda rows: definitions.pr_grpo(rows, suppression=3.0)  # noqa: E731
    else:
        drift = [
            torch.stack(
                [
                    (a.log() - b.log()).gather(-1, c).abs().mean(-1)
                    for (a, _), (b, c) in zip(new, then, strict=True)
                ]
            )
            .mean(0)
            .double()
            for new, then in zip(heard["new"], heard["old"], strict=True)
        ]
        defined = lambda rows: definitions.rspo(rows, lowest=0.2, before=True)  # noqa: E731
    assert float(torch.cat(drift).min()) > 1e-3
    logp = logp_of(lm, rows)
    advantages = [float(torch.tensor(row.advantage)) for row in rows]
    expected = -definitions.mean_over_rows(
        defined(Rows(logp=logp, old=old, advantages=advantages, drift=drift))
    )
    gradient = gradient_of(expected, lm)
    run = rewarded(lm, policy=policy, given=rows, watch_routers=routers_of(lm))
    loss, found = step_of(run, lessons)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    for name, wanted in gradient.items():
        torch.testing.assert_close(found[name], wanted, rtol=2e-3, atol=2e-6)
    assert found["model.model.layers.0.mlp.gate.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("kind", "move"),
    [
        *((kind, None) for kind in ("forward_kl", "reverse_kl", "jsd", "sampled_token")),
        *((kind, RewardTemperature()) for kind in ("forward_kl", "reverse_kl", "jsd")),
    ],
)
def test_rewards_and_a_teacher_together_are_the_sum_of_both(kind: str, move) -> None:
    writer = dense(dtype=torch.float64)
    rows = written(writer)
    # Several in one micro-batch, so that their advantages can be mixed up.
    picked = [index % GROUP != 1 for index in range(len(rows))]
    old, lessons = old_lessons(writer, rows, picked=picked)
    lm = moved(dense(dtype=torch.float64))
    other = CausalLM(tiny_llama(2, **{**SIZES, "vocab_size": 72}).to(torch.float64))
    teach = objective(kind)
    advantages = [float(torch.tensor(row.advantage)) for row in rows]
    values = definitions.grpo(
        Rows(logp=logp_of(lm, rows), old=old, advantages=advantages, drift=[])
    )
    divergences: list[Tensor] = []
    for row, chosen, advantage in zip(rows, picked, advantages, strict=True):
        if not chosen:
            continue
        with torch.no_grad():
            taught = logits_of(other, row)[:, :64]
        if move is not None:
            taught = taught / float(reward_temperature(torch.tensor([advantage])))
        per_token = teach.from_logits(logits_of(lm, row), taught, torch.tensor(row.completion_ids))
        divergences.append(per_token.mean())
    expected = -definitions.mean_over_rows(values) + 0.7 * torch.stack(divergences).mean()
    gradient = gradient_of(expected, lm)
    from tutelage.teachers.live import LiveTeacher

    run = rewarded(
        lm,
        policy=Grpo(distill_weight=0.7),
        teach=teach,
        teacher=LiveTeacher(other),
        given=rows,
        **({} if move is None else {"move": move}),
    )
    loss, found = step_of(run, lessons)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, wanted in gradient.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=2e-8)
    assert run.teacher.num_scored_rows == sum(picked)


@pytest.mark.parametrize(
    "policy", [Grpo(), Gspo(), Gmpo(), DrGrpo(length=10)], ids=lambda p: p.kind
)
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(policy: Policy) -> None:
    writer = dense()
    rows = written(writer)
    _, lessons = old_lessons(writer, rows, picked=[True, False] * 4)
    found = []
    for size in (16, 48, 4096):
        run = rewarded(moved(dense()), policy=policy, teach=objective(), given=rows)
        original = Supply.collect
        Supply.collect = lambda self: replace(self._window(lessons), numbers={}, fresh=[])
        run.settings = choices(num_steps=1, max_grad_norm=None, micro_batch_tokens=size)
        try:
            found.append(gradient_of_first_step(run))
        finally:
            Supply.collect = original
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_policy_on_rows_without_advantages_names_what_is_missing() -> None:
    rows = [replace(row, advantage=None) for row in written(dense())]
    with pytest.raises(DataError, match="has no advantage"):
        rewarded(given=rows).train()


def test_contradictions_are_refused_before_a_step() -> None:
    with pytest.raises(ConfigError, match=r"policy\.kind is pr_grpo.*this student has none"):
        rewarded(policy=PrGrpo()).train()
    with pytest.raises(ConfigError, match=r"training\.reduction is not given"):
        rewarded(settings=choices().model_copy(update={}).__class__(rows_per_step=8)).train()
    with pytest.raises(ConfigError, match=r"importance\.level is token with policy\.kind gmpo"):
        rewarded(policy=Gmpo(), settings=choices(weighting={"importance": {}})).train()
    with pytest.raises(ConfigError, match=r"policy\.length is null"):
        rewarded(policy=DrGrpo()).train()


def test_the_packages_own_tap_hears_what_hooks_hear() -> None:
    lm = mixture()
    watching = routers_to_watch(lm)
    assert watching is not None
    assert routers_to_watch(dense()) is None
    view = collate(written(lm)).student
    with torch.no_grad(), watching(None) as own, routers_of(lm)(None) as hooks:
        lm.hidden(view)
    ours, theirs = own.of(view), hooks.of(view)
    for layer, expected in zip(ours.probabilities, theirs.probabilities, strict=True):
        torch.testing.assert_close(layer, expected)
    for layer, expected in zip(ours.chosen, theirs.chosen, strict=True):
        assert torch.equal(layer.sort(-1).values, expected.sort(-1).values)


def test_replayed_routing_is_the_old_students_and_the_routers_go_on_learning() -> None:
    def measures(*, replay: bool, rate: float) -> tuple[list[dict[str, float]], CausalLM]:
        lm = mixture()
        run = rewarded(
            lm,
            policy=PrGrpo(replay_routing=replay),
            watch_routers=routers_to_watch(lm),
            settings=choices(
                num_steps=2, updates_per_batch=2, micro_batch_tokens=48, learning_rate=rate
            ),
        )
        return watched(run, lambda r: {"loss": r.totals.loss, **r.totals.measures}), lm

    still, replayed = measures(replay=False, rate=1e-30), measures(replay=True, rate=1e-30)
    assert still[0] == replayed[0]
    free, held = measures(replay=False, rate=3e-2), measures(replay=True, rate=3e-2)
    assert free[0][0] == held[0][0]
    # Other experts than the old ones were chosen by then, and replay does not ask them.
    assert free[0][1] != held[0][1]
    for name, weight in mixture().named_parameters():
        if name.endswith("mlp.gate.weight"):
            assert not torch.equal(dict(held[1].named_parameters())[name], weight)
