"""Thirty steps that must not move, in classes that must agree with each other."""

from typing import Any

import pytest
import torch

from tests.training.tiny_runs import losses, objective, settings, student, teacher, trainer, weights
from tutelage.objectives import Taid

pytestmark = [pytest.mark.golden, pytest.mark.slow]

GOLDEN: dict[str, list[float]] = {
    "forward KL": [1.150244, 0.914986, 0.727559, 0.562771, 0.530881],
    "reverse KL": [1.246139, 0.958068, 0.766479, 0.62236, 0.576221],
    "cross-entropy": [4.913484, 4.13592, 3.358243, 2.316705, 1.967405],
    "TAID": [0.204327, 0.203344, 0.237731, 0.350584, 0.531516],
}
"""Losses of steps 1, 5, 10, 20 and 30 for each objective."""

AT = (0, 4, 9, 19, 29)


def trajectory(kind: str, **fields: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    lm = student()
    chosen = {"num_steps": 30, "micro_batch_tokens": 64, **fields.pop("chosen", {})}
    run = trainer(student=lm, objective=objective(kind), settings=settings(**chosen), **fields)
    return losses(run), weights(lm)


CLASSES: dict[str, dict[str, Any]] = {
    "plain in place of fused": {"chosen": {"fused": False}},
    "one micro-batch in place of several": {"chosen": {"micro_batch_tokens": 10**6}},
    "gradient checkpointing": {"chosen": {"gradient_checkpointing": True}},
    "padded rows in place of packed ones": {"layout": "padded"},
    "a teacher that remembers": {"remember": True},
}
"""What must not change where a run goes."""


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_runs_of_one_class_go_the_same_way(kind: str, name: str) -> None:
    expected, weights_expected = trajectory(kind)
    fields = dict(CLASSES[name])
    lm = student()
    if fields.pop("layout", None):
        lm.layout = "padded"
    taught = teacher(remember_bytes=2**20 if fields.pop("remember", False) else 0)
    chosen = {"num_steps": 30, "micro_batch_tokens": 64, **fields.pop("chosen", {})}
    run = trainer(
        student=lm, teacher=taught, objective=objective(kind), settings=settings(**chosen)
    )
    assert losses(run) == pytest.approx(expected, rel=2e-3)
    for key, weight in weights(lm).items():
        torch.testing.assert_close(weight, weights_expected[key], rtol=1e-2, atol=2e-3)
    if taught.num_remembered_rows:
        # Twenty-four rows, thirty steps of eight: nine epochs of ten cost no forward pass.
        assert taught.num_scored_rows == 24


@pytest.mark.parametrize(
    ("name", "kind", "move"),
    [
        ("forward KL", "forward_kl", None),
        ("reverse KL", "reverse_kl", None),
        ("cross-entropy", "cross_entropy", None),
        ("TAID", "forward_kl", Taid()),
    ],
)
def test_thirty_steps_stay_where_they_were(name: str, kind: str, move: Taid | None) -> None:
    fields = {} if move is None else {"move": move}
    found, _ = trajectory(kind, **fields)
    assert [found[at] for at in AT] == pytest.approx(GOLDEN[name], rel=2e-3)
