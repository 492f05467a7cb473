"""AdamW decays matrices only, and is never given weights too coarse to move."""

import pytest
import torch

from tests.training.tiny_runs import settings, student
from tutelage.core.errors import ConfigError, ModelError
from tutelage.training.optimizer import build_optimizer, set_learning_rate


def test_norms_and_biases_do_not_decay_and_matrices_do() -> None:
    lm = student(attention_bias=True)
    optimizer = build_optimizer(lm, settings(weight_decay=0.1))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in lm.named_parameters():
        exempt = "norm" in name or name.endswith("bias")
        assert decay[id(parameter)] == (0.0 if exempt else 0.1), name
    assert len(decay) == len(list(lm.parameters()))


def test_frozen_weights_are_left_out() -> None:
    lm = student()
    head = lm.head.weight
    head.requires_grad_(requires_grad=False)
    optimizer = build_optimizer(lm, settings())
    assert all(p is not head for group in optimizer.param_groups for p in group["params"])


def test_every_group_gets_the_clocks_learning_rate() -> None:
    optimizer = build_optimizer(student(), settings())
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


def test_the_first_pattern_that_matches_a_name_sets_its_rate_and_decay_stays() -> None:
    lm = student()
    factors = {"model.layers.1.*": 0.5, "*.mlp.*": 0.01}
    optimizer = build_optimizer(lm, settings(learning_rate_factors=factors, weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in lm.named_parameters():
        factor = 0.5 if "layers.1." in name else 0.01 if ".mlp." in name else 1.0
        assert group_of[id(parameter)]["lr"] == 0.5 * factor, name
        assert group_of[id(parameter)]["weight_decay"] == (0.1 if parameter.dim() > 1 else 0), name
    assert len(group_of) == len(list(lm.parameters()))


def test_a_pattern_of_nothing_that_is_trained_is_refused() -> None:
    lm = student()
    for parameter in lm.model.model.layers[0].parameters():
        parameter.requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match=r"has 'model\.layers\.0\.\*', which no trained"):
        build_optimizer(lm, settings(learning_rate_factors={"model.layers.0.*": 0.1}))


def test_half_precision_weights_are_refused_with_the_way_out() -> None:
    lm = student()
    lm.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"is bfloat16.*training\.precision to bf16"):
        build_optimizer(lm, settings())


def test_a_student_without_trainable_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="no trainable weights"):
        build_optimizer(student().requires_grad_(requires_grad=False), settings())
