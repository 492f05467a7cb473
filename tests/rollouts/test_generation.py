"""Sampled completions: ids in, ids out, whatever the batch, the padding and the model's habits."""

import pytest
import torch
from transformers import GenerationConfig

from tests.rollouts.test_sampling import transformers_p
from tests.tiny_models import VOCABULARY, tiny_gemma3, tiny_llama
from tutelage.core.errors import DataError, NumericsError
from tutelage.models import CausalLM
from tutelage.rollouts.engines import Completion, Sampling, generate

GREEDY = Sampling(temperature=0, max_completion_tokens=12, batch_rows=4)
SAMPLED = Sampling(temperature=1.0, max_completion_tokens=12, batch_rows=4)
EOS = 257


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def completed(lm: CausalLM, prompts: list[list[int]], sampling: Sampling, seed: int = 0):
    return generate(lm, prompts, sampling, generator=torch.Generator().manual_seed(seed))


def next_token_logits(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    """The plain forward over one unpadded row, without a cache."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0, -1].double()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma3])
def test_a_greedy_batch_says_what_each_row_says_alone_and_what_plain_forwards_say(make) -> None:
    lm = CausalLM(make())
    prompts = prompts_of(3, 11, 1, 7, 20, 2)
    together = completed(lm, prompts, GREEDY)
    for prompt, completion in zip(prompts, together, strict=True):
        assert completed(lm, [prompt], GREEDY) == [completion]
        ids = list(prompt)
        for token in completion.ids:
            assert int(next_token_logits(lm, ids).argmax()) == token
            ids.append(token)


def test_prompts_full_of_the_pad_token_are_read_like_any_other() -> None:
    lm = CausalLM(tiny_llama())
    prompts = [[EOS, EOS, 5], [7, EOS, 9, 10, 11, 12], [1, 2]]
    alone = [completed(lm, [prompt], GREEDY)[0] for prompt in prompts]
    assert completed(lm, prompts, GREEDY) == alone
    assert alone[0].ids[0] == int(next_token_logits(lm, prompts[0]).argmax())


def test_what_is_sampled_does_not_depend_on_the_batch_size() -> None:
    lm = CausalLM(tiny_llama())
    prompts = prompts_of(3, 11, 1, 7, 20)
    one_by_one = SAMPLED.model_copy(update={"batch_rows": 1})
    assert completed(lm, prompts, SAMPLED) == completed(lm, prompts, one_by_one)


def test_the_seed_decides_and_the_global_generators_are_left_alone() -> None:
    lm = CausalLM(tiny_llama())
    prompts = prompts_of(4, 6)
    before = torch.get_rng_state()
    first = completed(lm, prompts, SAMPLED, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert completed(lm, prompts, SAMPLED, seed=1) == first
    assert completed(lm, prompts, SAMPLED, seed=2) != first


def ends_at(model, *ids: int):
    model.generation_config = GenerationConfig(eos_token_id=list(ids))
    return model


def test_every_end_token_of_the_generation_config_stops_a_row_and_stays_in_it() -> None:
    # With half of the vocabulary an end, rows stop within a few tokens, each at its own end.
    ends = range(0, VOCABULARY, 2)
    lm = CausalLM(ends_at(tiny_llama(), *ends))
    found = completed(lm, prompts_of(*([5] * 16)), SAMPLED)
    finished = [c for c in found if not c.truncated]
    assert len({c.ids[-1] for c in finished}) > 1
    for completion in finished:
        assert completion.ids[-1] in ends
        assert not set(completion.ids[:-1]) & set(ends)


def test_a_truncated_completion_has_every_token_it_may_have_and_no_end() -> None:
    lm = CausalLM(ends_at(tiny_llama(), EOS))
    found = completed(lm, prompts_of(*([5] * 8)), SAMPLED)
    truncated = [c for c in found if c.truncated]
    assert truncated
    for completion in truncated:
        assert len(completion.ids) == SAMPLED.max_completion_tokens
        assert EOS not in completion.ids


def test_an_end_as_the_very_last_token_allowed_is_not_a_truncation() -> None:
    lm = CausalLM(tiny_llama())
    prompt = prompts_of(6)
    said = completed(lm, prompt, GREEDY)[0].ids
    last = next(i for i in range(1, len(said)) if said[i] not in said[:i])
    stops = CausalLM(ends_at(tiny_llama(), said[last]))
    limited = GREEDY.model_copy(update={"max_completion_tokens": last + 1})
    assert completed(stops, prompt, limited) == [Completion(ids=said[: last + 1], truncated=False)]


def test_an_answer_that_ends_at_once_is_counted_as_empty() -> None:
    lm = CausalLM(tiny_llama())
    prompt = prompts_of(6)
    first = completed(lm, prompt, GREEDY)[0].ids[0]
    silent = completed(CausalLM(ends_at(tiny_llama(), first)), prompt, GREEDY)[0]
    assert silent == Completion(ids=(first,), truncated=False)
    assert silent.is_empty
    assert not Completion(ids=(3,), truncated=True).is_empty


def test_sampling_habits_that_came_with_the_model_are_ignored_and_kept() -> None:
    plain, habitual = tiny_llama(), tiny_llama()
    habits = GenerationConfig(
        eos_token_id=EOS, do_sample=True, temperature=0.3, top_k=2, repetition_penalty=5.0
    )
    habitual.generation_config = habits
    prompts = prompts_of(4, 9)
    assert completed(CausalLM(habitual), prompts, SAMPLED) == completed(
        CausalLM(ends_at(plain, EOS)), prompts, SAMPLED
    )
    assert habitual.generation_config is habits


def test_a_model_in_training_generates_as_in_evaluation_and_goes_on_training() -> None:
    lm = CausalLM(tiny_llama(attention_dropout=0.5))
    prompts = prompts_of(4, 9)
    expected = completed(lm.eval(), prompts, GREEDY)
    lm.train()
    frozen_part = lm.model.model.layers[0].eval()
    assert completed(lm, prompts, GREEDY) == expected
    assert lm.training
    assert lm.model.model.layers[1].training
    assert not frozen_part.training


def test_first_tokens_come_as_often_as_the_model_says() -> None:
    lm = CausalLM(tiny_llama())
    prompt = prompts_of(5)[0]
    sampling = Sampling(temperature=0.5, max_completion_tokens=1, batch_rows=2000)
    found = completed(lm, [prompt] * 2000, sampling)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in found]), minlength=VOCABULARY)
    expected = torch.softmax(next_token_logits(lm, prompt) / 0.5, -1)
    likely = expected > 0.02
    assert likely.sum() >= 3
    spread = (expected * (1 - expected) / 2000).sqrt()
    assert ((counts / 2000 - expected).abs() < 4.5 * spread)[likely].all()


def test_a_model_with_nan_scores_is_reported_with_the_prompt() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(NumericsError, match="for prompt 1 at completion token 0"):
        completed(CausalLM(model), prompts_of(4, 9), GREEDY)


def test_prompts_without_tokens_or_without_room_are_refused() -> None:
    lm = CausalLM(tiny_llama(max_position_embeddings=16))
    with pytest.raises(DataError, match="Prompt 1 is empty"):
        completed(lm, [[1], []], GREEDY)
    with pytest.raises(DataError, match=r"Prompt 0 .* up to 17 tokens.* more than 16"):
        completed(lm, prompts_of(5), GREEDY)


def test_no_prompts_give_no_completions() -> None:
    assert completed(CausalLM(tiny_llama()), [], GREEDY) == []


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        SAMPLED.model_copy(update={"temperature": 0.7, "top_p": 0.8}),
        SAMPLED.model_copy(update={"temperature": 1.3, "top_k": 7, "top_p": 0.9}),
    ],
)
def test_each_token_comes_with_the_log_probability_it_was_drawn_with(sampling) -> None:
    lm = CausalLM(ends_at(tiny_llama(), *range(0, VOCABULARY, 20)))
    prompts = prompts_of(3, 11, 1, 7, 20)
    found = completed(lm, prompts, sampling)
    assert len({len(c.ids) for c in found}) > 1
    for prompt, completion in zip(prompts, found, strict=True):
        assert len(completion.logp) == len(completion.ids)
        ids = list(prompt)
        for token, logp in zip(completion.ids, completion.logp, strict=True):
            expected = transformers_p(next_token_logits(lm, ids)[None], sampling)[0, token].log()
            assert logp == pytest.approx(float(expected), abs=1e-4)
            ids.append(token)


def test_greedy_tokens_are_certain() -> None:
    completion = completed(CausalLM(tiny_llama()), prompts_of(5), GREEDY)[0]
    assert completion.logp == (0.0,) * len(completion.ids)


def test_a_row_with_a_generator_of_its_own_says_the_same_in_any_company() -> None:
    lm = CausalLM(tiny_llama())
    prompts = prompts_of(3, 11, 1, 7, 20)

    def said(rows: list[int]) -> list[Completion]:
        own = [torch.Generator().manual_seed(row) for row in rows]
        return generate(lm, [prompts[row] for row in rows], SAMPLED, generator=own)

    whole = said([0, 1, 2, 3, 4])
    assert said([3, 1]) == [whole[3], whole[1]]
    assert said([4]) == [whole[4]]


def test_an_entry_that_is_padding_is_never_drawn() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[40:] = 0
        model.lm_head.weight[41] = model.lm_head.weight[:40].mean(0) + 100
    own = torch.Generator().manual_seed(0)
    found = generate(CausalLM(model), prompts_of(4, 5), SAMPLED, generator=own, num_real=40)
    assert max(max(c.ids) for c in found) < 40
