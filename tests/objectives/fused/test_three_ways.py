"""Fused, plain and fp64: the fused path is never less exact than the plain one."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.objectives.fused.problems import (
    FEATURES,
    KINDS,
    error,
    exact,
    fused,
    in_dtype,
    make_case,
    name_of,
    objective_of,
    plain,
)

MODES: dict[str, tuple[torch.dtype, str]] = {
    "fp32": (torch.float32, "auto"),
    "bf16 split": (torch.bfloat16, "split"),
    "bf16 native": (torch.bfloat16, "native"),
}
every_kind = pytest.mark.parametrize("settings", KINDS, ids=name_of)


@every_kind
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("mode", MODES)
def test_every_objective_with_every_head_is_as_exact_as_its_plain_twin(
    settings: Mapping[str, Any], features: str, mode: str
) -> None:
    dtype, logits = MODES[mode]
    objective, case = objective_of(settings), make_case(FEATURES[features], dtype=dtype)
    tile = (None, 5)[(len(name_of(settings)) + len(features)) % 2]
    values, gradients = fused(case, objective, logits=logits, tile_tokens=tile)
    true_values, true_gradients = exact(case, objective)
    # Split logits are held against a twin that computes in fp32 and rounds its gradients.
    twin = case if logits != "split" else in_dtype(case, torch.float32)
    twin_values, twin_gradients = plain(twin, objective)

    # Few numbers make a noisy error: allow a unit in the last place beside the ratio.
    # A split score keeps about 17 bits, a native one 9.
    value_floor = {"auto": 1e-6, "split": 2**-15, "native": 2**-9}[logits]
    assert error(values, true_values) <= 1.3 * error(twin_values, true_values) + value_floor
    floor = 1e-6 if dtype == torch.float32 else 2**-8
    for got, true, other in zip(gradients, true_gradients, twin_gradients, strict=True):
        assert got.dtype == dtype
        assert error(got, true) <= 1.3 * error(other.to(dtype), true) + floor


@every_kind
@pytest.mark.parametrize(
    "features", ["plain", "softcap", "num_real", "narrower student", "unlike teacher"]
)
def test_in_float64_the_fused_path_is_the_definition(
    settings: Mapping[str, Any], features: str
) -> None:
    objective = objective_of(settings)
    case = in_dtype(make_case(FEATURES[features]), torch.float64)
    values, gradients = fused(case, objective, tile_tokens=4)
    true_values, true_gradients = plain(case, objective)
    torch.testing.assert_close(values, true_values, rtol=1e-10, atol=1e-12)
    for got, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-12)


@every_kind
def test_over_many_rows_the_error_is_at_most_a_third_above_the_plain_twins(
    settings: Mapping[str, Any],
) -> None:
    objective = objective_of(settings)
    case = make_case(FEATURES["plain"], num_tokens=256, num_entries=700)
    values, gradients = fused(case, objective)
    true_values, true_gradients = exact(case, objective)
    twin_values, twin_gradients = plain(case, objective)
    # Below two units in the last place there is nothing to compare.
    least = 2**-22
    assert error(values, true_values) <= max(1.3 * error(twin_values, true_values), least)
    for got, true, other in zip(gradients, true_gradients, twin_gradients, strict=True):
        assert error(got, true) <= max(1.3 * error(other, true), least)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_small_weights_do_not_underflow_in_half_precision(dtype: torch.dtype, sign: int) -> None:
    objective = objective_of({"kind": "forward_kl"})
    case, tiny = (make_case(FEATURES["plain"], dtype=dtype) for _ in range(2))
    # With a weight of 0, the largest of negative ones is not the one of the largest size.
    for one in (case, tiny):
        one.weights[3] = 0
    wanted = fused(case, objective)[1]
    tiny.weights.mul_(sign * 2.0**-12)
    got = fused(tiny, objective)[1]
    for small, large in zip(got, wanted, strict=True):
        scaled = small.double() * sign * 2.0**12
        assert error(scaled, large) < (5e-3 if dtype == torch.float16 else 1e-6)


def test_master_weights_may_stay_fp32_while_matmuls_run_in_bf16() -> None:
    objective = objective_of({"kind": "jsd"})
    case = make_case(FEATURES["bias"])
    rounded = in_dtype(in_dtype(case, torch.bfloat16), torch.float32)
    true_values, true_gradients = exact(rounded, objective)
    values, gradients = fused(case, objective, matmul_dtype=torch.bfloat16)
    assert error(values, true_values) < 0.02
    for got, true in zip(gradients, true_gradients, strict=True):
        assert got.dtype == torch.float32
        assert error(got, true) < 0.02


def test_a_matmul_dtype_is_that_of_the_matmuls() -> None:
    objective, case = objective_of({"kind": "jsd"}), make_case(FEATURES["plain"])
    values, _ = fused(case, objective, matmul_dtype=torch.bfloat16)
    cast, _ = fused(in_dtype(case, torch.bfloat16), objective)
    torch.testing.assert_close(values, cast)
    assert error(values, exact(case, objective)[0]) > 1e-4
