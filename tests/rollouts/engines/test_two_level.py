"""Blocks first, then inside: the very draw of `draw_scored`."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tutelage.rollouts.engines import Sampling
from tutelage.rollouts.engines.sampling import FIRST_TRIES, draw_scored
from tutelage.rollouts.engines.two_level import BLOCK, TOP_BLOCK, draw_by_blocks

SIZES = (30, BLOCK, BLOCK + 1, 5000, 40_000)


def scores(seed: int, size: int, *, rows: int = 4, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, generator=generator) * spread
    return logits, torch.rand(rows, generator=generator, dtype=torch.float64)


@given(
    st.integers(0, 10_000),
    st.sampled_from(SIZES),
    st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    st.sampled_from([None, 1, 5, 100]),
)
def test_a_uniform_draws_the_token_and_log_probability_that_draw_scored_gives_it(
    seed: int, size: int, temperature: float, top_p: float, top_k: int | None
) -> None:
    logits, uniforms = scores(seed, size)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    expected, expected_logp = draw_scored(logits, uniforms, sampling)
    tokens, logp = draw_by_blocks(logits, uniforms, sampling)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(logp, expected_logp, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_boundaries_between_tokens_lie_where_they_do_in_draw_scored(size: int) -> None:
    """Uniforms close to each boundary, on both sides, by a hundred times the rounding."""
    logits, _ = scores(1, size, rows=1)
    edges = logits[0].double().softmax(-1).cumsum(-1)[:: max(1, size // 50)]
    uniforms = torch.cat([edges - 1e-5, edges + 1e-5]).clamp(0, 1 - 1e-9)
    many = logits.expand(len(uniforms), -1)
    expected = draw_scored(many, uniforms, Sampling())[0]
    assert draw_by_blocks(many, uniforms, Sampling())[0].tolist() == expected.tolist()


def test_a_uniform_on_a_boundary_belongs_to_the_token_behind_it() -> None:
    """Equal scores have exact sums, so that every boundary can be met, and that of the blocks."""
    size = 2 * BLOCK
    uniforms = torch.arange(size, dtype=torch.float64) / size
    found = draw_by_blocks(torch.zeros(size, size), uniforms, Sampling())[0]
    assert found.tolist() == list(range(size))


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    size, num_draws = 3 * BLOCK + 7, 20_000
    logits, _ = scores(5, size, rows=1)
    uniforms = torch.rand(num_draws, generator=torch.Generator().manual_seed(2)).double()
    tokens, _ = draw_by_blocks(logits.expand(num_draws, -1), uniforms, Sampling(temperature=1.3))
    counts = torch.bincount(tokens, minlength=size).double()
    expected = (logits[0].double() / 1.3).softmax(-1) * num_draws
    likely = expected > 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    wanted = torch.cat([expected[likely], expected[~likely].sum()[None]])
    chi_square = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    assert freedom > 100
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9999), Sampling(top_k=300)])
def test_what_is_ruled_out_is_never_drawn_at_either_end(sampling: Sampling) -> None:
    logits = torch.full((2, 4 * BLOCK), -math.inf)
    # Whole blocks before and behind are ruled out, and the ends of the one between.
    logits[:, BLOCK + 3] = 0.0
    logits[:, BLOCK + 9] = 1.0
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert set(draw_by_blocks(logits, ends, sampling)[0].tolist()) <= {BLOCK + 3, BLOCK + 9}


def test_top_p_is_exact_where_the_first_entries_sorted_do_not_reach_it() -> None:
    logits = torch.linspace(0, 0.1, FIRST_TRIES[1] + 500)[None].expand(2, -1)
    for top_p in (0.01, 0.5, 0.999):
        ends = torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)
        sampling = Sampling(top_p=top_p)
        expected = draw_scored(logits.double(), ends, sampling)[0]
        found = draw_by_blocks(logits, ends, sampling)[0]
        # Entries differ by less than their rounding where the sum reaches top_p.
        torch.testing.assert_close(found, expected, atol=1, rtol=0)


def test_the_largest_entries_are_found_when_one_block_holds_them_all_or_each_holds_one() -> None:
    size, k = 100 * TOP_BLOCK, 20
    for places in (torch.arange(k) + 5 * TOP_BLOCK, torch.arange(k) * 3 * TOP_BLOCK + 1):
        logits = torch.zeros(1, size)
        logits[0, places] = torch.arange(1.0, k + 1) / 10
        uniforms = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
        sampling = Sampling(top_k=k)
        tokens = draw_by_blocks(logits.expand(500, -1), uniforms, sampling)[0]
        assert set(tokens.tolist()) == set(places.tolist())


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.9), Sampling(top_k=2)]
)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_marked_and_its_neighbours_are_not(sampling, poison) -> None:
    logits, uniforms = scores(0, 2 * BLOCK, rows=2)
    logits[1, BLOCK + 5] = poison
    found = draw_by_blocks(logits, uniforms, sampling)[0].tolist()
    assert found == [int(draw_scored(logits, uniforms, sampling)[0][0]), -1]
    nothing = torch.full((1, 5), -math.inf)
    assert draw_by_blocks(nothing, uniforms[:1], sampling)[0].tolist() == [-1]


def test_greedily_the_first_of_equals_is_taken() -> None:
    logits = torch.zeros(1, 3 * BLOCK)
    logits[0, [BLOCK + 9, BLOCK + 200, 2 * BLOCK + 1]] = 2.0
    found = draw_by_blocks(logits, torch.rand(1), Sampling(temperature=0))[0]
    assert found.tolist() == [int(logits.argmax())] == [BLOCK + 9]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_of_other_precision_are_drawn_from_as_they_are(dtype: torch.dtype) -> None:
    logits, uniforms = scores(3, 5000, rows=16)
    expected = draw_scored(logits.to(dtype), uniforms, Sampling())
    found = draw_by_blocks(logits.to(dtype), uniforms, Sampling())
    assert found[0].tolist() == expected[0].tolist()
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=2e-6)


def test_scores_far_below_the_highest_weigh_nothing_and_cost_no_accuracy() -> None:
    logits = torch.linspace(-500, 0, 1000)[None].expand(3, -1)
    uniforms = torch.tensor([1e-9, 0.5, 0.999], dtype=torch.float64)
    expected = draw_scored(logits, uniforms, Sampling())
    found = draw_by_blocks(logits, uniforms, Sampling())
    assert found[0].tolist() == expected[0].tolist()
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=2e-6)
