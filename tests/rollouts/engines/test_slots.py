"""The slots say what `generate` says, row by row, whatever their number and whoever is beside."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import MistralConfig, PreTrainedModel

from tests.rollouts.test_generation import GREEDY, SAMPLED, ends_at, next_token_logits, prompts_of
from tests.rollouts.test_sampling import transformers_p
from tests.tiny_models import SIZES, VOCABULARY, build, tiny_llama, tiny_qwen2, tiny_qwen3
from tutelage.core.errors import DataError, NumericsError
from tutelage.models import CausalLM
from tutelage.rollouts.engines import (
    Completion,
    Sampling,
    decoder,
    generate,
    slots,
    write_in_slots,
)

ROTARY = {"rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    **ROTARY,
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {**ROTARY, "rope_type": "yarn", "original_max_position_embeddings": 16}
PROMPTS = prompts_of(3, 11, 1, 7, 20, 2, 5)
WIDE = SAMPLED.model_copy(update={"max_completion_tokens": 14, "batch_rows": 3})


def tiny_mistral(seed: int = 0, **overrides: Any) -> PreTrainedModel:
    return build(MistralConfig(**{**SIZES, **overrides}), seed=seed)


MODELS = {
    "llama": tiny_llama,
    "llama, tied": lambda: tiny_llama(tie_word_embeddings=True),
    "llama, biases": lambda: tiny_llama(attention_bias=True, mlp_bias=True),
    "llama, a key-value head for each": lambda: tiny_llama(num_key_value_heads=4),
    "llama, one key-value head": lambda: tiny_llama(num_key_value_heads=1),
    "llama, wide heads": lambda: tiny_llama(head_dim=16),
    "llama, llama3 rotary": lambda: tiny_llama(rope_parameters=LLAMA3),
    "llama, yarn rotary": lambda: tiny_llama(rope_parameters=YARN),
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
}
every_model = pytest.mark.parametrize("name", list(MODELS))


def own(rows: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in rows]


def said(lm: CausalLM, rows: Sequence[int], sampling: Sampling, prompts=PROMPTS):
    return write_in_slots(lm, [prompts[r] for r in rows], sampling, generator=own(rows))


def logp_of(found: Sequence[Completion]) -> torch.Tensor:
    return torch.tensor([logp for completion in found for logp in completion.logp])


@every_model
def test_greedily_the_slots_say_what_transformers_says_to_each_prompt_alone(name: str) -> None:
    model = MODELS[name]()
    lm = CausalLM(ends_at(model, *range(0, VOCABULARY, 9)))
    greedy = GREEDY.model_copy(update={"max_completion_tokens": 16, "batch_rows": 3})
    found = said(lm, range(len(PROMPTS)), greedy)
    assert len({len(completion.ids) for completion in found}) > 2
    for prompt, completion in zip(PROMPTS, found, strict=True):
        alone = model.generate(
            torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        assert completion.ids == tuple(alone[0, len(prompt) :].tolist())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"temperature": 0.7, "top_p": 0.8}),
        ("llama", {"top_k": 7}),
        *((name, {}) for name in MODELS),
    ],
)
def test_the_same_random_numbers_draw_what_generate_draws(name: str, settings) -> None:
    lm = CausalLM(ends_at(MODELS[name](), *range(0, VOCABULARY, 20)))
    sampling = WIDE.model_copy(update=settings)
    rows = range(len(PROMPTS))
    plain = generate(lm, PROMPTS, sampling, generator=own(rows))
    found = said(lm, rows, sampling)
    assert found == plain
    torch.testing.assert_close(logp_of(found), logp_of(plain), atol=2e-5, rtol=0)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3])
def test_each_token_has_the_log_probability_of_the_models_own_forward(make) -> None:
    lm = CausalLM(ends_at(make(), *range(0, VOCABULARY, 20)))
    sampling = WIDE.model_copy(update={"temperature": 0.8})
    for prompt, completion in zip(PROMPTS, said(lm, range(7), sampling), strict=True):
        ids = list(prompt)
        for token, logp in zip(completion.ids, completion.logp, strict=True):
            expected = transformers_p(next_token_logits(lm, ids)[None], sampling)[0, token].log()
            assert logp == pytest.approx(float(expected), abs=1e-4)
            ids.append(token)


def test_neither_the_number_of_slots_nor_the_company_nor_the_order_changes_a_draw() -> None:
    lm = CausalLM(ends_at(tiny_llama(), *range(0, VOCABULARY, 20)))
    whole = said(lm, range(7), WIDE)
    for num_slots in (1, 5, 64):
        assert said(lm, range(7), WIDE.model_copy(update={"batch_rows": num_slots})) == whole
    assert said(lm, [5, 1], WIDE) == [whole[5], whole[1]]
    assert said(lm, range(6, -1, -1), WIDE) == whole[::-1]


def test_one_generator_for_all_rows_serves_them_in_their_order() -> None:
    lm = CausalLM(tiny_llama())
    both = [
        engine(lm, PROMPTS, WIDE, generator=torch.Generator().manual_seed(4))
        for engine in (generate, write_in_slots)
    ]
    assert both[0] == both[1]


def test_a_row_stops_at_whichever_end_it_meets_and_only_there() -> None:
    ends = range(0, VOCABULARY, 10)
    lm = CausalLM(ends_at(tiny_llama(), *ends))
    prompts = prompts_of(*([5] * 16))
    found = said(lm, range(16), WIDE, prompts)
    assert len({c.ids[-1] for c in found if not c.truncated}) > 2
    assert any(c.truncated for c in found)
    for completion in found:
        assert not set(completion.ids[:-1]) & set(ends)
        assert completion.truncated == (completion.ids[-1] not in ends)
        assert not completion.truncated or len(completion.ids) == WIDE.max_completion_tokens


def test_an_end_as_the_very_last_token_allowed_is_no_truncation() -> None:
    lm = CausalLM(ends_at(tiny_llama()))
    whole = said(lm, [0], GREEDY)[0].ids
    last = next(i for i in range(1, len(whole)) if whole[i] not in whole[:i])
    stops = CausalLM(ends_at(tiny_llama(), whole[last]))
    limited = GREEDY.model_copy(update={"max_completion_tokens": last + 1})
    assert said(stops, [0], limited) == [Completion(ids=whole[: last + 1], truncated=False)]


def test_a_limit_of_its_own_cuts_a_row_and_no_other() -> None:
    lm = CausalLM(ends_at(tiny_llama()))
    whole = said(lm, range(7), WIDE)
    limits = [4, 99, 1, 14, 13, 2, 8]
    cut = write_in_slots(lm, PROMPTS, WIDE, generator=own(range(7)), limits=limits)
    assert [c.ids for c in cut] == [c.ids[:n] for c, n in zip(whole, limits, strict=True)]
    assert all(c.truncated for c in cut)


@pytest.mark.parametrize("num_slots", [1, 3, 20])
def test_rows_that_share_a_prompt_say_what_each_says_alone(num_slots: int) -> None:
    lm = CausalLM(ends_at(tiny_llama(), *range(0, VOCABULARY, 15)))
    shared = [PROMPTS[n] for n in (1, 4, 1, 1, 2, 4, 2, 1, 2, 3, 1)]
    sampling = WIDE.model_copy(update={"batch_rows": num_slots})
    found = said(lm, range(len(shared)), sampling, shared)
    assert len({c.ids for c in found}) > 6
    for row in (0, 4, 6, 9, 10):
        assert said(lm, [row], sampling, shared) == [found[row]]


def test_a_prompt_whose_slot_is_free_is_not_overwritten_before_it_is_used_again() -> None:
    lm = CausalLM(ends_at(tiny_llama()))
    # Both slots come free at once, and the second holds the prompt of the next row.
    shared = [PROMPTS[n] for n in (4, 1, 1, 3)]
    sampling = WIDE.model_copy(update={"batch_rows": 2})
    found = write_in_slots(lm, shared, sampling, generator=own(range(4)), limits=[1, 1, 9, 9])
    alone = write_in_slots(lm, shared[2:3], sampling, generator=own([2]), limits=[9])
    assert found[2] == alone[0]


def passes_of(monkeypatch: pytest.MonkeyPatch) -> list[decoder.Pass]:
    """Every pass that is made from here on."""
    seen: list[decoder.Pass] = []
    read = decoder.Decoder.__call__

    def noted(self, given):
        seen.append(given)
        return read(self, given)

    monkeypatch.setattr(decoder.Decoder, "__call__", noted)
    return seen


@pytest.mark.parametrize("num_slots", [2, 4, 16])
def test_a_prompt_of_many_rows_is_read_once(num_slots: int, monkeypatch) -> None:
    seen = passes_of(monkeypatch)
    shared = [PROMPTS[n] for n in (1, 4, 1, 4, 1, 4, 1, 4)]
    sampling = WIDE.model_copy(update={"batch_rows": num_slots})
    said(CausalLM(tiny_llama()), range(8), sampling, shared)
    read = [ids for given in seen for _, ids in given.prompts]
    assert sorted(map(len, read)) == [len(PROMPTS[1]), len(PROMPTS[4])]


def test_a_slot_is_filled_again_in_the_pass_after_its_row_ended(monkeypatch) -> None:
    seen = passes_of(monkeypatch)
    limits = [9, 2, 4, 1, 3, 3, 2]
    sampling = WIDE.model_copy(update={"batch_rows": 2})
    lm = CausalLM(ends_at(tiny_llama()))
    write_in_slots(lm, PROMPTS, sampling, generator=own(range(7)), limits=limits)
    busy = [len(given.prompts) + len(given.tokens) for given in seen]
    # While prompts wait, no slot is ever idle; a row gets one token in each pass.
    assert sum(busy) == sum(limits)
    assert busy == sorted(busy, reverse=True)


def test_prompts_that_are_too_many_for_one_pass_wait_and_change_nothing(monkeypatch) -> None:
    lm = CausalLM(tiny_llama())
    whole = said(lm, range(7), WIDE)
    monkeypatch.setattr(slots, "MOST_PROMPT_TOKENS", 12)
    seen = passes_of(monkeypatch)
    assert said(lm, range(7), WIDE) == whole
    sizes = [sum(len(ids) for _, ids in given.prompts) for given in seen]
    assert max(sizes) == 20
    assert all(size <= 12 for size in sizes if size != 20)


def test_a_pass_of_prompts_and_tokens_gives_the_scores_of_plain_forwards() -> None:
    lm = CausalLM(tiny_qwen3())
    weights = decoder.Weights(lm, dtype=torch.float32, num_real=None, packed=False)
    made = decoder.Decoder(weights, num_slots=4, room=32)
    long, short = PROMPTS[4], PROMPTS[3]
    made(decoder.Pass(prompts=[(2, long)]))
    scores = made(
        decoder.Pass(
            prompts=[(0, short)],
            copies=[(2, 1, 19), (0, 3, 6)],
            tokens=[(2, 20, 77), (1, 19, long[-1]), (3, 6, short[-1])],
        )
    )
    expected = [next_token_logits(lm, ids) for ids in (short, [*long, 77], long, short)]
    torch.testing.assert_close(scores.double(), torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
def test_a_model_with_nan_scores_is_reported_with_prompt_and_token(settings: Sampling) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(NumericsError, match="for prompt 1 at completion token 0"):
        said(CausalLM(model), [0, 4], settings)


def test_a_row_that_breaks_later_is_named_and_so_is_its_token() -> None:
    lm = CausalLM(ends_at(tiny_llama()))
    first, second, third = said(lm, [3], GREEDY)[0].ids[:3]
    assert third not in (first, second, *PROMPTS[3], *PROMPTS[5])
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[third] = torch.inf
    prompts = [PROMPTS[5], PROMPTS[3]]
    with pytest.raises(NumericsError, match="for prompt 1 at completion token 3"):
        write_in_slots(lm, prompts, GREEDY, generator=own([0, 1]), limits=[2, 12])


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[41] = model.lm_head.weight[:40].mean(0) + 100
    lm = CausalLM(model)
    found = write_in_slots(lm, PROMPTS, WIDE, generator=own(range(7)), num_real=40)
    assert max(max(c.ids) for c in found) < 40
    assert found == generate(lm, PROMPTS, WIDE, generator=own(range(7)), num_real=40)


def test_prompts_without_tokens_or_without_room_are_refused_and_none_give_none() -> None:
    lm = CausalLM(tiny_llama(max_position_embeddings=16))
    with pytest.raises(DataError, match="Prompt 1 is empty"):
        said(lm, [0, 1], GREEDY, [[1], []])
    with pytest.raises(DataError, match=r"Prompt 0 .* up to 17 tokens.* more than 16"):
        said(lm, [0], GREEDY, prompts_of(5))
    assert said(lm, [], GREEDY) == []


def test_first_tokens_come_as_often_as_the_model_says() -> None:
    lm = CausalLM(tiny_llama())
    sampling = Sampling(temperature=0.5, max_completion_tokens=1, batch_rows=400)
    one = torch.Generator().manual_seed(0)
    found = write_in_slots(lm, [PROMPTS[0]] * 1200, sampling, generator=one)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in found]), minlength=VOCABULARY)
    expected = torch.softmax(next_token_logits(lm, PROMPTS[0]) / 0.5, -1) * 1200
    likely = expected > 5
    assert likely.sum() > 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    wanted = torch.cat([expected[likely], expected[~likely].sum()[None]])
    chi_square = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_the_uniforms_of_a_row_are_used_one_after_another() -> None:
    """A uniform model draws the entry its uniform points at."""
    lm = CausalLM(ends_at(tiny_llama()))
    with torch.no_grad():
        lm.head.weight.zero_()
    found = said(lm, range(7), WIDE)
    for row, completion in enumerate(found):
        uniforms = torch.rand(14, generator=own([row])[0], dtype=torch.float64)
        assert completion.ids == tuple((uniforms * VOCABULARY).long().tolist())
    assert all(a.ids != b.ids for a, b in pairwise(found))
