"""What calls leave to each other is room, and nothing else."""

import threading

import pytest
import torch
from torch import Tensor

from tests.objectives.fused.problems import (
    FEATURES,
    Features,
    fused,
    in_dtype,
    make_case,
    objective_of,
)
from tutelage.objectives import fused as door
from tutelage.objectives.fused import head_gradient
from tutelage.objectives.fused.scratch import borrowed

FORWARD_KL = objective_of({"kind": "forward_kl"})
CPU = torch.device("cpu")


def answer(case, **options) -> list[Tensor]:  # type: ignore[no-untyped-def]
    values, gradients = fused(case, FORWARD_KL, **options)
    return [values, *gradients]


def leave_behind(value: float) -> None:
    """Fill all that this thread's scratch holds."""
    with borrowed() as scratch:
        for buffer in scratch._buffers.values():
            buffer.fill_(value)


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nothing_that_an_earlier_call_left_behind_is_read(
    features: Features, dtype: torch.dtype
) -> None:
    case = in_dtype(make_case(features), dtype)
    door.release_scratch()
    true = answer(case, tile_tokens=5)
    for left in (float("nan"), 6e4, 0.0):
        leave_behind(left)
        for got, expected in zip(answer(case, tile_tokens=5), true, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_smaller_call_after_a_larger_one_gives_what_it_gives_alone() -> None:
    small, large = make_case(FEATURES["bias"], num_tokens=3), make_case(FEATURES["bias"])
    door.release_scratch()
    true = answer(small)
    answer(large)
    for got, expected in zip(answer(small), true, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_gradients_are_not_overwritten_by_the_next_call() -> None:
    first, second = make_case(FEATURES["bias"], seed=1), make_case(FEATURES["bias"], seed=2)
    found = answer(first)
    kept = [x.clone() for x in found]
    answer(second)
    for got, expected in zip(found, kept, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_call_inside_a_call_and_another_thread_get_their_own() -> None:
    elsewhere: list[Tensor] = []

    def take() -> None:
        with borrowed() as scratch:
            elsewhere.append(scratch.take("x", (4,), dtype=torch.float32, device=CPU))

    with borrowed() as outer:
        mine = outer.take("x", (4,), dtype=torch.float32, device=CPU)
        with borrowed() as inner:
            theirs = inner.take("x", (4,), dtype=torch.float32, device=CPU)
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        pointers = {x.data_ptr() for x in (mine, theirs, elsewhere[0])}
    assert len(pointers) == 3


def test_the_second_call_finds_its_room_and_release_gives_it_back() -> None:
    door.release_scratch()
    answer(make_case(FEATURES["plain"]))
    with borrowed() as scratch:
        held = scratch.num_bytes
    assert held > 0
    answer(make_case(FEATURES["plain"]))
    with borrowed() as scratch:
        assert scratch.num_bytes == held
    door.release_scratch()
    with borrowed() as scratch:
        assert scratch.num_bytes == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tile", [4, 100])
def test_the_heads_gradient_is_the_same_whichever_way_its_slabs_lie(
    dtype: torch.dtype, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = in_dtype(make_case(FEATURES["wider student"], num_entries=83), dtype)
    found: list[Tensor] = []
    monkeypatch.setattr(head_gradient, "_SLAB_ENTRIES", 16)
    for amx in (False, True):
        monkeypatch.setattr(head_gradient, "has_amx", lambda amx=amx: amx)
        found.append(answer(case, tile_tokens=tile)[2])
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=scale * 2**-7)
    assert scale > 0
