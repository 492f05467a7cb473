"""The CPU laws on a CUDA device: the same code, the same answers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.fused.problems import (
    FEATURES,
    KINDS,
    Case,
    error,
    exact,
    fused,
    make_case,
    name_of,
    objective_of,
)
from tutelage.core.targets import HiddenTarget

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(case: Case) -> Case:
    def move(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().cuda().requires_grad_(x.requires_grad)

    head = replace(case.head, weight=move(case.head.weight), bias=move(case.head.bias))
    t = case.target
    labels = move(t.labels)
    if isinstance(t, HiddenTarget):
        teacher = replace(t.head, weight=move(t.head.weight), bias=move(t.head.bias))
        target: Any = replace(t, hidden=move(t.hidden), head=teacher, labels=labels)
    else:
        target = replace(t, logits=move(t.logits), labels=labels)
    return replace(
        case, hidden=move(case.hidden), head=head, target=target, weights=case.weights.cuda()
    )


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)],
    ids=["fp32", "bf16", "fp16"],
)
def test_every_objective_with_every_head_gives_the_cpus_answer(
    settings: Mapping[str, Any], features: str, dtype: torch.dtype, tolerance: float
) -> None:
    objective = objective_of(settings)
    case = make_case(FEATURES[features], dtype=dtype)
    true_values, true_gradients = exact(case, objective)
    values, gradients = fused(on_gpu(case), objective, tile_tokens=5)
    assert error(values.cpu(), true_values) < 1e-4
    for got, true in zip(gradients, true_gradients, strict=True):
        assert error(got.cpu(), true) < tolerance


def test_memory_on_the_device_does_not_grow_with_the_tokens() -> None:
    peaks = []
    for num_tokens in (2048, 8192):
        case = on_gpu(make_case(FEATURES["plain"], num_tokens=num_tokens, num_entries=8000))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        fused(case, objective_of({"kind": "jsd"}), tile_tokens=256)
        peaks.append(torch.cuda.max_memory_allocated() - held)
    # Hidden states and their gradients grow; scores, which would be a hundred times that, do not.
    assert peaks[1] - peaks[0] < 8192 * 16 * 4 * 8
