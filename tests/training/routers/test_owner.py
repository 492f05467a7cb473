"""Who owns a student's biases: what it hears, when it moves them, and by how much."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_moe import NUM_CHOSEN, NUM_EXPERTS
from tests.training.routers.routed_runs import (
    BALANCED,
    SHARES,
    WARM_UP,
    judged_rows,
    routed,
    student,
)
from tests.training.tiny_runs import settings, watched, weights
from tutelage.core.errors import ConfigError
from tutelage.core.records import Rollout
from tutelage.models import CausalLM
from tutelage.models.routers import RouterTap, biases_of, freeze_all_but_experts
from tutelage.routing import activity_loss
from tutelage.text.collate import collate
from tutelage.training import RouterOwner, RoutingSettings
from tutelage.training.routers import ExpertTargetSettings
from tutelage.training.routers.probe import Probe
from tutelage.training.routers.terms import Activities

RATE = BALANCED["balance"]


def slow_tally(lm: CausalLM, rows: list[Rollout]) -> tuple[Tensor, Tensor]:
    """Load and advantage of each expert, token by token in plain Python."""
    batch = collate(rows, device="cpu")
    with RouterTap(lm) as tap, torch.no_grad():
        lm.hidden(batch.student)
    loads, advantages = [], []
    for chosen in tap.of(batch.student).chosen:
        given: list[list[float]] = [[] for _ in range(NUM_EXPERTS)]
        count = [0] * NUM_EXPERTS
        for at, place in enumerate(batch.student.predicts.tolist()):
            if not batch.loss_mask[at]:
                continue
            for expert in chosen[place].tolist():
                count[expert] += 1
                advantage = rows[int(batch.row_of[at])].advantage
                if advantage is not None:
                    given[expert].append(advantage)
        loads.append([n / sum(count) for n in count])
        advantages.append([sum(each) / max(len(each), 1) for each in given])
    double = torch.float64
    return torch.tensor(loads, dtype=double), torch.tensor(advantages, dtype=double)


def one_step(routing: Mapping[str, Any], lm: CausalLM, **changes: Any) -> RouterOwner:
    chosen = settings(num_steps=1, micro_batch_tokens=48, **changes)
    made, owner = routed(dict(routing), lm, settings=chosen)
    made.train()
    return owner


def test_a_bias_moves_by_the_load_and_advantage_of_the_trained_tokens_alone() -> None:
    lm, rows = student(), judged_rows()
    load, advantage = slow_tally(lm, rows[:8])
    owner = one_step(BALANCED, lm)
    assert owner.latest is not None
    torch.testing.assert_close(owner.latest.load, load)
    torch.testing.assert_close(owner.latest.advantage, advantage)
    torch.testing.assert_close(owner.latest.load.sum(dim=-1), torch.ones(2, dtype=torch.float64))
    # From zero, the average less its start is the advantage itself.
    expected = -RATE["balance_rate"] * (load - 1 / NUM_EXPERTS) + RATE["reward_rate"] * advantage
    torch.testing.assert_close(biases_of(lm).double(), expected, rtol=1e-5, atol=1e-7)


def test_each_step_counts_its_own_tokens_and_no_earlier_ones() -> None:
    lm, rows = student(), judged_rows()
    expected = [slow_tally(lm, rows[at : at + 8])[0] for at in (0, 8, 16)]
    still = settings(num_steps=3, micro_batch_tokens=48, learning_rate=1e-12)
    made, owner = routed({}, lm, settings=still)
    made.loss_on(rows[20:])
    for load, wanted in zip(watched(made, lambda _: owner.latest), expected, strict=True):
        torch.testing.assert_close(load.load, wanted)


def test_the_printed_sign_is_there_for_the_asking() -> None:
    intended, literal = student(), student()
    no_reward = {**BALANCED["balance"], "reward_rate": 0.0}
    one_step({"balance": no_reward}, intended)
    one_step({"balance": {**no_reward, "sign": "literal"}}, literal)
    torch.testing.assert_close(biases_of(intended), -biases_of(literal))
    assert biases_of(intended).any()


def test_advantages_are_averaged_over_updates_with_the_start_taken_off() -> None:
    lm = student()
    balance = {
        "kind": "reward_bias",
        "balance_rate": 0.0,
        "reward_rate": 1.0,
        "average_weight": 0.5,
    }
    made, owner = routed({"balance": balance}, lm)

    def look(_: object) -> tuple[Tensor, Tensor]:
        assert owner.latest is not None
        return owner.latest.advantage, biases_of(lm).double()

    (a1, b1), (a2, b2), (a3, b3) = watched(made, look)
    torch.testing.assert_close(b1, a1, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b2 - b1, (0.25 * a1 + 0.5 * a2) / 0.75, rtol=1e-5, atol=1e-6)
    third = (0.125 * a1 + 0.25 * a2 + 0.5 * a3) / 0.875
    torch.testing.assert_close(b3 - b2, third, rtol=1e-5, atol=1e-6)


def test_biases_move_once_a_step_however_it_is_cut_and_never_in_evaluation() -> None:
    found = []
    for tokens in (24, 4096):
        lm = student()
        seen: list[Tensor] = []

        def evaluate(lm: CausalLM = lm, seen: list[Tensor] = seen) -> dict[str, float]:
            lm.hidden(collate(judged_rows()[:2], device="cpu").student)
            seen.append(biases_of(lm))
            return {}

        chosen = settings(num_steps=3, micro_batch_tokens=tokens, evaluate_every=1)
        made, owner = routed(BALANCED, lm, settings=chosen, evaluate=evaluate)
        before = owner.state_dict()["num_moves"]
        made.loss_on(judged_rows()[:3])
        assert owner.state_dict()["num_moves"] == before
        assert not biases_of(lm).any()
        made.train()
        assert owner.state_dict()["num_moves"] == 3
        assert not seen[0].any()
        found.append((torch.stack(seen), weights(lm)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(weight, found[1][1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_how_a_step_is_cut_changes_no_uniform_choice() -> None:
    loads = []
    for tokens in (24, 4096):
        made, owner = routed(
            {"mode": "uniform_sample"}, settings=settings(num_steps=2, micro_batch_tokens=tokens)
        )
        loads.append(watched(made, lambda _, owner=owner: owner.latest.load.clone()))
    for one, other in zip(*loads, strict=True):
        assert one.equal(other)
    assert not loads[0][0].equal(loads[0][1])


def test_the_gradient_of_the_warm_up_reaches_all_experts_and_nothing_else() -> None:
    lm = student()
    freeze_all_but_experts(lm)
    before = weights(lm)
    made, _ = routed(WARM_UP, lm)
    made.train()
    for name, weight in weights(lm).items():
        moved = weight != before[name]
        assert bool(moved.any()) == (".experts." in name), name
        if ".experts." in name:
            assert moved.flatten(1).any(dim=-1).all(), f"every expert of {name}"


def test_the_targets_pull_activities_towards_themselves() -> None:
    losses = {}
    for weight in (1e-9, 30.0):
        lm = student()
        freeze_all_but_experts(lm)
        routing = {**WARM_UP, "targets": {"weight": weight, "temperature": 0.02}}
        chosen = settings(num_steps=25, learning_rate=3e-3, rows_per_step=24)
        made, _ = routed(routing, lm, settings=chosen)
        losses[weight] = [
            x / weight for x in watched(made, lambda r: r.totals.routers["router_loss"])
        ]
    assert losses[30.0][0] == pytest.approx(losses[1e-9][0], rel=1e-3)
    assert losses[30.0][-1] < 0.8 * losses[1e-9][-1]


@pytest.mark.parametrize("routing", [BALANCED, WARM_UP, {"balance": {"kind": "switch_loss"}}])
def test_checkpointed_layers_are_counted_once_and_change_no_number(routing: dict[str, Any]) -> None:
    found = []
    for checkpointed in (False, True):
        lm = student()
        chosen = settings(num_steps=2, micro_batch_tokens=48, gradient_checkpointing=checkpointed)
        made, owner = routed(routing, lm, settings=chosen)
        made.train()
        assert owner.latest is not None
        found.append((owner.latest.load, biases_of(lm), weights(lm)))
    assert found[0][0].equal(found[1][0])
    assert found[0][1].equal(found[1][1])
    for name, weight in found[0][2].items():
        torch.testing.assert_close(weight, found[1][2][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["switch_loss", "importance_loss"])
def test_an_auxiliary_loss_spreads_probability_and_is_in_the_log(kind: str) -> None:
    found = {}
    for weight in (1e-9, 3.0):
        lm = student()
        chosen = settings(num_steps=20, learning_rate=3e-3)
        made, _ = routed({"balance": {"kind": kind, "weight": weight}}, lm, settings=chosen)
        terms = watched(made, lambda r: r.totals.routers["router_loss"])
        found[weight] = [term / weight for term in terms]
    assert found[3.0][0] == pytest.approx(found[1e-9][0], rel=1e-3)
    assert found[3.0][-1] < 0.97 * found[1e-9][-1]


def test_a_routers_loss_is_a_mean_over_the_step_however_it_is_cut() -> None:
    terms = []
    for tokens in (24, 4096):
        chosen = settings(num_steps=1, micro_batch_tokens=tokens)
        made, _ = routed({"balance": {"kind": "switch_loss"}}, settings=chosen)
        terms += watched(made, lambda r: r.totals.routers["router_loss"])
    # Not to the last digit, for it is not linear in its tokens; a sum would be several times it.
    assert terms[0] == pytest.approx(terms[1], rel=0.2)


def test_experts_without_a_token_have_no_part_in_their_loss() -> None:
    activities = Activities(SHARES, ExpertTargetSettings(weight=2.0, temperature=0.5))
    means, heard = torch.tensor([0.3, 0.0, -0.1, 0.2]), torch.tensor([4, 0, 1, 2])
    for layer in range(2):
        activities.acted(layer, means, heard)
    each = [activity_loss(means, shares, temperature=0.5, active=heard > 0) for shares in SHARES]
    torch.testing.assert_close(activities.loss(), 2.0 * torch.stack(each).mean())
    activities.clear()
    activities.acted(0, means, heard)
    torch.testing.assert_close(activities.loss(), 2.0 * each[0])


def test_loss_free_balancing_moves_one_stride_in_the_choice_alone() -> None:
    lm = student()
    load, _ = slow_tally(lm, judged_rows()[:8])
    one_step({"balance": {"kind": "loss_free", "rate": 0.01}}, lm)
    expected = 0.01 * torch.sign(1 / NUM_EXPERTS - load)
    torch.testing.assert_close(biases_of(lm).double(), expected, rtol=1e-5, atol=1e-7)


def test_the_cap_holds_and_the_alarm_counts_layers() -> None:
    lm = student()
    balance = {**BALANCED["balance"], "reward_rate": 50.0, "cap": 0.02, "alarm": 1e-6}
    made, _ = routed({"balance": balance}, lm)
    alarms = watched(made, lambda r: r.totals.routers["router_alarms"])
    assert biases_of(lm).abs().max() == pytest.approx(0.02)
    assert alarms[0] == 2


def test_the_shift_is_measured_from_one_probe_to_the_next() -> None:
    lm, rows = student(), judged_rows()
    view = collate(rows[:3], device="cpu").student
    probe = Probe(lm.train(), view, every=2)
    probe.begin()
    assert probe.after(1) is None
    assert probe.after(2) == 0.0
    assert lm.training
    from tutelage.models.routers import set_biases

    set_biases(lm, torch.tensor([[5.0, 0, 0, 0]] * 2))
    first = probe.after(4)
    assert first is not None
    assert 0 < first < 2**0.5
    assert probe.after(6) == 0.0


@pytest.mark.parametrize("state", ["num_moves", "average", "probe"])
def test_what_is_saved_is_all_that_the_next_move_depends_on(state: str) -> None:
    def after(*, keep: bool) -> Any:
        lm = student()
        first, owner = routed(BALANCED, lm, probe_every=2)
        first.train()
        again = RouterOwner(
            lm,
            RoutingSettings(**BALANCED),
            seed=3,
            probe=Probe(lm, collate(judged_rows()[:3], device="cpu").student, every=2),
        )
        saved = owner.state_dict()
        fresh = again.state_dict()
        again.load_state_dict(saved if keep else {**saved, state: fresh[state]})
        chosen = settings(num_steps=1, micro_batch_tokens=48)
        made, _ = routed(BALANCED, lm, settings=chosen)
        made.routers = again
        numbers = watched(made, lambda r: dict(r.totals.routers))
        return biases_of(lm).tolist(), numbers

    assert after(keep=True) != after(keep=False)


def test_targets_for_another_student_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"routing\.targets is missing"):
        RouterOwner(student(), RoutingSettings(**WARM_UP), seed=0)


def test_each_token_loads_as_many_experts_as_it_has() -> None:
    lm = student()
    made, owner = routed({}, lm, settings=settings(num_steps=1))
    made.train()
    batch = collate(judged_rows()[:8], device="cpu")
    assert owner.latest is not None
    shares = owner.latest.load * int(batch.loss_mask.sum()) * NUM_CHOSEN
    torch.testing.assert_close(shares, shares.round())
