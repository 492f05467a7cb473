"""What a recipe may ask of vLLM, found out before anything starts."""

from pathlib import Path

import pytest

from tutelage.core.errors import MissingDependencyError
from tutelage.recipes.check import contradictions
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.rows import described, engine_identity, watched
from tutelage.recipes.run import run_recipe
from tutelage.rollouts.engines.vllm.child import VARIABLE


def tiny(*overrides: str) -> Recipe:
    return load("tiny_on_policy", ["baselines={}", *overrides])


VLLM = "rollouts.engine=vllm"


def test_a_recipe_tells_who_runs_vllm_and_how_often_it_gets_weights() -> None:
    line = described(tiny(VLLM).rollouts)
    assert line.endswith("by vLLM (started by the run, given the weights every step)")
    given = "rollouts.vllm={mode: server, url: http://127.0.0.1:8000, sync_every: 4}"
    line = described(tiny(VLLM, given).rollouts)
    assert "by vLLM (at http://127.0.0.1:8000, given the weights every 4 steps)" in line


def test_drift_is_measured_where_vllm_writes_and_can_be() -> None:
    assert watched(tiny()).measure_drift is None
    assert watched(tiny("training.measure_drift=true")).measure_drift is True
    assert watched(tiny(VLLM)).measure_drift is True
    assert watched(tiny(VLLM, "training.measure_drift=false")).measure_drift is False
    for cut in ("rollouts.top_p=0.9", "rollouts.top_k=5", "rollouts.temperature=0"):
        assert watched(tiny(VLLM, cut)).measure_drift is None


def test_a_resumed_run_has_to_agree_on_vllm_and_on_nothing_among_our_own_engines() -> None:
    assert engine_identity(tiny()) == engine_identity(tiny("rollouts.engine=hf")) == {}
    assert engine_identity(tiny(VLLM, "rollouts.vllm={sync_every: 2}")) == {
        "rollouts.engine": "vllm",
        "rollouts.vllm.sync_every": 2,
    }


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["rollouts.top_p=0.5", "training.measure_drift=true"], "training.measure_drift is true"),
        ([VLLM, "rollouts.temperature=2.5"], "rollouts.temperature is 2.5"),
        (
            [VLLM, "student={kind: loaded, model: x}", "routing={balance: {kind: loss_free}}"],
            "moves router biases that vLLM has no place for",
        ),
    ],
)
def test_what_vllm_cannot_do_is_said_before_anything_loads(
    overrides: list[str], complaint: str
) -> None:
    assert any(complaint in line for line in contradictions(tiny(*overrides)))
    assert not any(complaint in line for line in contradictions(tiny(*overrides[1:])))


def test_a_machine_without_vllm_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="Run `make vllm`"):
        run_recipe(tiny(VLLM, "evaluation.num_rows=0", "training.evaluate_every=null"))
