"""AdamW decays matrices only, and is never given weights too coarse to move."""

import pytest
import torch

from tests.training.tiny_runs import settings, student
from tutelage.core.errors import ModelError
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


def test_half_precision_weights_are_refused_with_the_way_out() -> None:
    lm = student()
    lm.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"is bfloat16.*training\.precision to bf16"):
        build_optimizer(lm, settings())


def test_a_student_without_trainable_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="no trainable weights"):
        build_optimizer(student().requires_grad_(requires_grad=False), settings())
