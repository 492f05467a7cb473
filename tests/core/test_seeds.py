"""One seed gives many streams that do not disturb each other and can be put back."""

import random

import numpy as np
import pytest
import torch

from tutelage.core.errors import CheckpointError
from tutelage.core.seeds import Seeds, capture_globals, restore_globals, seed_for, seed_globals


def draw(seeds: Seeds, name: str) -> tuple[float, float, float]:
    return (
        float(torch.rand((), generator=seeds.torch(name))),
        float(seeds.numpy(name).random()),
        seeds.python(name).random(),
    )


def draw_globals() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.normal()), random.gauss(0.0, 1.0)


def test_the_same_seed_and_name_give_the_same_stream() -> None:
    assert draw(Seeds(3), "data") == draw(Seeds(3), "data")


def test_another_name_or_another_seed_gives_another_stream() -> None:
    numbers = {*draw(Seeds(3), "data"), *draw(Seeds(3), "dropout"), *draw(Seeds(4), "data")}
    assert len(numbers) == 9


def test_drawing_from_one_stream_shifts_no_other() -> None:
    disturbed = Seeds(0)
    for _ in range(5):
        draw(disturbed, "new user of randomness")
    assert draw(disturbed, "data") == draw(Seeds(0), "data")


def test_a_seed_for_names_is_fixed_for_ever() -> None:
    # A change here would silently change every published run.
    assert seed_for(0, "data") == 3547684127435271545
    assert seed_for(0, "a", "b") != seed_for(0, "ab")


def test_streams_go_on_from_where_their_state_was_taken() -> None:
    seeds = Seeds(7)
    draw(seeds, "data")
    state = seeds.state_dict()
    expected = [draw(seeds, "data") for _ in range(3)]

    resumed = Seeds(7)
    handed_out_before = resumed.torch("data")
    resumed.load_state_dict(state)

    assert [draw(resumed, "data") for _ in range(3)] == expected
    assert resumed.torch("data") is handed_out_before


def test_a_state_of_another_seed_is_refused() -> None:
    with pytest.raises(CheckpointError, match="seed is 2; it must be 1"):
        Seeds(2).load_state_dict(Seeds(1).state_dict())


def test_the_global_generators_go_back_to_where_they_were() -> None:
    seed_globals(5)
    # An odd number of Gaussians leaves one in the cache of both `random` and numpy.
    draw_globals()
    state = capture_globals()
    expected = [draw_globals() for _ in range(3)]
    draw_globals()
    restore_globals(state)
    assert [draw_globals() for _ in range(3)] == expected


def test_seeding_the_globals_makes_them_repeat() -> None:
    seed_globals(5)
    first = draw_globals()
    seed_globals(5)
    assert draw_globals() == first
    seed_globals(6)
    assert draw_globals() != first
