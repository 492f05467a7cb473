"""Impossible training settings cannot be written down."""

import pytest
from pydantic import ValidationError

from tutelage.training import TrainingSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "greater than 0"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"betas": (0.9, 1.0)}, "less than 1"),
        ({"max_grad_norm": 0.0}, "greater than 0"),
        ({"precision": "fp16"}, "fp32"),
        ({"track_with": ["mlfow"]}, "tensorboard"),
        ({"rows_per_step": 8, "tokens_per_step": 100}, "both given"),
        ({"num_steps": 10, "warmup_steps": 10}, "must be less than training.num_steps"),
        ({"schedule": "constant", "final_learning_rate_share": 0.1}, "never falls"),
        ({"fused": False, "loss_megabytes": 64}, "belong to the fused loss"),
        ({"learning_rte": 1e-4}, "Extra inputs"),
    ],
)
def test_an_impossible_setting_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSettings(**settings)


def test_what_only_watches_is_no_part_of_the_trajectory() -> None:
    plain = TrainingSettings()
    watched = TrainingSettings(evaluate_every=1, save_every=7, keep_checkpoints=9)
    assert plain.shaping() == watched.shaping()
    assert plain.shaping() != TrainingSettings(num_steps=99).shaping()
