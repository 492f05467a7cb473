"""One draw: temperature, top-k, top-p and the inverse of the cumulative distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tutelage.rollouts.engines import Sampling
from tutelage.rollouts.engines.sampling import FIRST_TRIES, draw, draw_scored


def transformers_p(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution transformers' own warpers leave."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k is not None:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)


def drawn_p(logits: Tensor, sampling: Sampling, num_draws: int = 20_000) -> Tensor:
    """How often each token comes over an even grid of uniforms."""
    grid = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    tokens = draw(logits[None].expand(num_draws, -1), grid, sampling)
    return torch.bincount(tokens, minlength=logits.shape[0]) / num_draws


@given(
    st.integers(0, 1000),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    st.sampled_from([None, 1, 5, 100]),
)
def test_the_draw_follows_the_distribution_transformers_would_draw_from(
    seed: int, temperature: float, top_p: float, top_k: int | None
) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed)) * 2
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    expected = transformers_p(logits[None], sampling)[0]
    found = drawn_p(logits, sampling, 4000)
    assert (found - expected).abs().max() < 2 / 4000 + 1e-6


def test_top_p_is_exact_where_the_first_entries_sorted_do_not_reach_it() -> None:
    vocabulary = FIRST_TRIES[1] + 500
    logits = torch.linspace(0, 0.1, vocabulary)
    for top_p in (0.01, 0.5, 0.999):
        sampling = Sampling(top_p=top_p)
        kept = transformers_p(logits[None], sampling)[0] > 0
        lowest, highest = draw(
            torch.stack([logits, logits]), torch.tensor([0.0, 1 - 1e-12]).double(), sampling
        ).tolist()
        assert highest == int(kept.nonzero()[0])
        assert lowest == vocabulary - 1


def test_a_uniform_at_either_end_never_draws_a_token_that_is_ruled_out() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    for sampling in (Sampling(), Sampling(top_p=0.9999), Sampling(top_k=4)):
        assert set(draw(logits, ends, sampling).tolist()) <= {1, 2}


def test_greedy_takes_the_likeliest_whatever_the_uniform() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]]).expand(3, -1)
    assert draw(logits, torch.rand(3), Sampling(temperature=0)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.9), Sampling(top_k=2)]
)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_marked_and_its_neighbours_are_not(sampling, poison) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, poison, 2.0]])
    found = draw(logits, torch.tensor([0.5, 0.5]), sampling).tolist()
    assert found[0] >= 0
    assert found[1] == -1


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"max_completion_tokens": 0}],
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        Sampling(**wrong)


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    logits = torch.linspace(0, 0.1, 30)
    sampling = Sampling(top_k=4, top_p=0.4)
    expected = transformers_p(logits[None], sampling)[0]
    assert (expected > 0).sum() == 2
    torch.testing.assert_close(drawn_p(logits, sampling), expected, atol=1e-3, rtol=0)


@given(
    st.integers(0, 1000),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    st.sampled_from([None, 1, 5, 100]),
)
def test_the_log_probability_is_that_of_the_distribution_transformers_would_draw_from(
    seed: int, temperature: float, top_p: float, top_k: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16, 30, generator=generator, dtype=torch.float64) * 2
    uniforms = torch.rand(16, generator=generator, dtype=torch.float64)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    tokens, logp = draw_scored(logits, uniforms, sampling)
    expected = transformers_p(logits, sampling).log().gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logp, expected, rtol=1e-9, atol=1e-9)


def test_a_greedy_token_is_certain() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 5.0, 1.0]])
    assert draw_scored(logits, torch.rand(2), Sampling(temperature=0))[1].tolist() == [0, 0]
