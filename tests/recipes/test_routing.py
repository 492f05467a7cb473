"""Recipes whose student is a mixture of experts: balanced, warmed up, resumed and saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import FAST
from tests.recipes.test_interrupted import ITSELF, ControlC
from tests.tiny_moe import NUM_EXPERTS, moe_folder
from tutelage.core.errors import CheckpointError, ConfigError, DataError
from tutelage.models import load_model, save_model
from tutelage.models.routers import biases_of, install_biased_routers, set_biases
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.run import run_recipe

GROUPS = "rollouts={kind: student, max_completion_tokens: 6, completions_per_prompt: 4, data: DATA}"
BALANCED = "routing={balance: {kind: reward_bias, balance_rate: 0.1}, probe_every: 2}"
WARM_UP = "routing={mode: uniform_sample, targets: {}}"


@pytest.fixture
def moe(tmp_path: Path) -> str:
    return moe_folder(tmp_path / "moe")


def recipe_of(moe: str, folder: Path, *overrides: str) -> Recipe:
    common = (*FAST, "baselines={}", f"student={moe}", f"output={folder}")
    return load("tiny", [*common, *overrides])


def rewarded(moe: str, data: str, folder: Path, *overrides: str) -> Recipe:
    return recipe_of(
        moe,
        folder,
        GROUPS.replace("DATA", data),
        "objective=policy_gradient",
        "reward={kind: exact_answer, extract: {kind: whole}}",
        *overrides,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(folder / "metrics.jsonl") if line["phase"] == "train"]


def assert_only_experts_moved(before: Path, after: Path) -> None:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    moved = {name for name in old if not old[name].equal(new[name])}
    assert moved == {name for name in old if ".experts." in name}


def test_experts_alone_are_trained_where_so_is_asked(moe: str, tmp_path: Path) -> None:
    outcome = run_recipe(recipe_of(moe, tmp_path / "run", "routing={trained: experts}"))
    assert_only_experts_moved(Path(moe), outcome.student)


def test_a_warm_up_moves_experts_and_nothing_else(moe: str, tmp_path: Path) -> None:
    outcome = run_recipe(recipe_of(moe, tmp_path / "run", WARM_UP))
    assert_only_experts_moved(Path(moe), outcome.student)
    train = train_lines(outcome.folder)
    assert all(line["router_loss"] > 0 for line in train)
    assert all(line["max_violation"] < 1 for line in train)


def state_of(folder: Path) -> tuple[bytes, list[dict[str, Any]], list[dict[str, Any]]]:
    weights = (folder / "student" / "model.safetensors").read_bytes()
    timed = {"seconds", "tokens_per_second", "generated_tokens_per_second"}
    log = [{k: v for k, v in line.items() if k not in timed} for line in train_lines(folder)]
    return weights, log, lines(folder / "routers.jsonl")


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("how", ["balanced", "warm-up"])
def test_an_interrupted_run_ends_with_the_biases_choices_and_log_of_an_unbroken_one(
    how: str, at: int, moe: str, data: str, tmp_path: Path
) -> None:
    steps = ("training.num_steps=5",)

    def recipe(name: str) -> Recipe:
        folder = tmp_path / name
        if how == "balanced":
            return rewarded(moe, data, folder, *steps, BALANCED, "routing.domain_column=domain")
        return recipe_of(moe, folder, *steps, WARM_UP)

    whole = run_recipe(recipe("whole"))
    run_recipe(recipe("broken"), narrator=ControlC(ITSELF, at=at))
    ended = run_recipe(recipe("broken"), resume=True)
    assert state_of(ended.folder) == state_of(whole.folder)


def test_a_run_does_not_go_on_with_other_routing(moe: str, tmp_path: Path) -> None:
    run_recipe(recipe_of(moe, tmp_path / "run", BALANCED), narrator=ControlC(ITSELF, at=1))
    other = BALANCED.replace("balance_rate: 0.1", "balance_rate: 0.2")
    with pytest.raises(
        CheckpointError, match=r"routing\.balance\.balance_rate is 0\.2.*must be 0\.1"
    ):
        run_recipe(recipe_of(moe, tmp_path / "run", other), resume=True)


def test_advantages_and_kinds_of_text_are_in_the_log(moe: str, data: str, tmp_path: Path) -> None:
    recipe = rewarded(
        moe,
        data,
        tmp_path / "run",
        BALANCED,
        "routing.domain_column=domain",
        "rollouts.data=" + data,
    )
    train = train_lines(run_recipe(recipe).folder)
    assert all("expert_advantage" in line for line in train)
    assert all(0 <= line["expert_alignment"] <= 1 for line in train)
    assert all(line["expert_specialisation"] >= 0 for line in train)


@pytest.mark.parametrize("balance", ["none", "loss_free", "switch_loss", "importance_loss"])
def test_every_baseline_of_balancing_trains(balance: str, moe: str, tmp_path: Path) -> None:
    recipe = recipe_of(moe, tmp_path / "run", f"routing={{balance: {{kind: {balance}}}}}")
    outcome = run_recipe(recipe)
    train = train_lines(outcome.folder)
    assert all(("router_loss" in line) == balance.endswith("loss") for line in train)
    assert any((outcome.student).glob("*.py")) == (balance == "loss_free")


def test_a_folded_student_is_a_stock_folder_and_the_run_says_how_good_it_is(
    moe: str, tmp_path: Path
) -> None:
    recipe = recipe_of(moe, tmp_path / "run", BALANCED, "routing.save_bias=fold")
    outcome = run_recipe(recipe)
    assert not list(outcome.student.glob("*.py"))
    assert biases_of(load_model(str(outcome.student)).lm) is None
    assert any("mean distance between the two routings" in n for n in outcome.summary["notes"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            "{mode: uniform_dense, balance: {kind: switch_loss}}",
            r"routing\.balance\.kind is switch_loss and routing\.mode is uniform_dense",
        ),
        ("{save_bias: refuse, balance: {kind: loss_free}}", r"save_bias is refuse"),
        ("{save_bias: fold, balance: {kind: loss_free}}", r"no weight can imitate"),
        ("{balance: {kind: reward_bias, reward_rate: 0.1}}", r"there is no reward"),
        ("{probe_rows: 0, probe_every: 2}", r"routing\.probe_every is 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: str, expected: str, moe: str, tmp_path: Path
) -> None:
    recipe = recipe_of(moe, tmp_path / "run", f"routing={settings}")
    with pytest.raises(ConfigError, match=expected):
        run_recipe(recipe)


def test_an_adapter_has_no_experts_to_train_and_targets_need_a_file(moe: str) -> None:
    lora = load("tiny", [f"student={{model: {moe}, lora: {{rank: 2}}}}", WARM_UP])
    assert any("student.lora is given" in line for line in contradictions(lora))
    pruned = load("tiny", [WARM_UP])
    assert any("routing.targets.file is null" in line for line in contradictions(pruned))


@pytest.mark.parametrize(
    ("student", "teacher", "refused"),
    [
        ("{model: MOE}", "{kind: self, weights: average}", True),
        ("{model: MOE}", "{kind: self, weights: live}", False),
        ("{model: MOE}", "{kind: self}", False),
        ("{model: MOE, lora: {rank: 2}}", "{kind: self}", True),
    ],
)
def test_a_self_teacher_whose_biases_would_not_be_its_own_is_refused(
    student: str, teacher: str, *, refused: bool, moe: str
) -> None:
    given = (f"student={student.replace('MOE', moe)}", f"teacher={teacher}", "baselines={}")
    found = [line for line in contradictions(load("tiny", [*given, BALANCED])) if "biases" in line]
    assert bool(found) == refused


def test_uniform_routing_may_train_everything_but_the_routers(moe: str, tmp_path: Path) -> None:
    recipe = recipe_of(moe, tmp_path / "run", "routing={mode: uniform_dense, trained: all}")
    outcome = run_recipe(recipe)
    before, after = (load_file(Path(f) / "model.safetensors") for f in (moe, outcome.student))
    still = {name for name in before if before[name].equal(after[name])}
    assert still == {name for name in before if ".gate." in name}


def test_a_dense_student_has_nothing_to_route(tmp_path: Path) -> None:
    recipe = load("tiny", [*FAST, f"output={tmp_path}", "routing={}"])
    with pytest.raises(ConfigError, match=r"routing is given, and the student is a dense"):
        run_recipe(recipe)


def test_biases_that_came_with_a_student_are_refused_where_none_may_be_saved(
    moe: str, tmp_path: Path
) -> None:
    loaded = load_model(moe)
    install_biased_routers(loaded.lm)
    set_biases(loaded.lm, torch.ones(2, NUM_EXPERTS).cumsum(1))
    folder = save_model(loaded.lm, loaded.tokenizer, tmp_path / "biased")
    recipe = recipe_of(str(folder), tmp_path / "run", "routing={save_bias: refuse}")
    with pytest.raises(ConfigError, match="comes with router biases"):
        run_recipe(recipe)


@pytest.mark.parametrize(
    ("shares", "error"),
    [
        (torch.full((2, 4), 0.3), "add up to something else"),
        (torch.full((3, 4), 0.25), "each of 2 layers and 4 experts"),
        (None, "is not readable"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    shares: torch.Tensor | None, error: str, moe: str, tmp_path: Path
) -> None:
    path = tmp_path / "targets.safetensors"
    if shares is not None:
        save_file({"shares": shares}, path)
    recipe = recipe_of(moe, tmp_path / "run", f"routing={{targets: {{file: {path}}}}}")
    with pytest.raises((ConfigError, DataError), match=error):
        run_recipe(recipe)


def test_a_domain_no_row_has_is_refused(moe: str, tmp_path: Path) -> None:
    recipe = recipe_of(moe, tmp_path / "run", "routing={domain_column: sort}")
    with pytest.raises(DataError, match=r"routing\.domain_column is sort, which no row has"):
        run_recipe(recipe)
