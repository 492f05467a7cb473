"""Whose weights the slots read, in which precision, and what they leave behind."""

import pytest
import torch
from transformers import Gemma3TextConfig, PreTrainedModel

from tests.rollouts.engines.test_slots import (
    MODELS,
    PROMPTS,
    ROTARY,
    WIDE,
    own,
    said,
    tiny_mistral,
)
from tests.rollouts.test_generation import GREEDY, ends_at, next_token_logits
from tests.tiny_models import SIZES, VOCABULARY, build, tiny_llama, tiny_qwen2
from tutelage.core.errors import ModelError
from tutelage.models import CausalLM, add_lora, lora_off
from tutelage.rollouts.engines import decoder, generate, refusal


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_in_half_precision_the_scores_are_as_exact_as_transformers_own(family: str) -> None:
    """Root mean square of the error against float64, at most a third above transformers'."""
    model = MODELS[family]()
    lm, ids = CausalLM(model), PROMPTS[4]
    exact = CausalLM(MODELS[family]().double())
    true = torch.stack([next_token_logits(exact, ids[:n]) for n in range(10, 21)])
    weights = decoder.Weights(lm, dtype=torch.bfloat16, num_real=None, packed=True)
    made = decoder.Decoder(weights, num_slots=1, room=32)
    found = [made(decoder.Pass(prompts=[(0, ids[:10])]))]
    found += [made(decoder.Pass(tokens=[(0, n - 1, ids[n - 1])])) for n in range(11, 21)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = model(torch.tensor([ids])).logits[0, 9:]
    errors = [(x.double() - true).square().mean().sqrt() for x in (torch.cat(found), theirs)]
    assert torch.cat(found).dtype == torch.bfloat16
    assert 0 < errors[0] < 1.3 * errors[1]


def test_under_autocast_weights_are_taken_in_half_precision_once_a_call(monkeypatch) -> None:
    taken: list[torch.dtype] = []
    init = decoder.Weights.__init__

    def noted(self, lm, *, dtype, **rest):
        taken.append(dtype)
        init(self, lm, dtype=dtype, **rest)

    monkeypatch.setattr(decoder.Weights, "__init__", noted)
    lm = CausalLM(tiny_llama())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = said(lm, range(7), WIDE)
    whole = said(lm, range(7), WIDE)
    assert taken == [torch.bfloat16, torch.float32]
    first = [[c.logp[0] for c in found if c.ids] for found in (half, whole)]
    assert first[0] != first[1]
    assert lm.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_kept_in_another_dtype_writes_in_it(dtype: torch.dtype) -> None:
    lm = CausalLM(ends_at(tiny_llama().to(dtype), *range(0, VOCABULARY, 20)))
    found = said(lm, range(7), WIDE)
    plain = generate(lm, PROMPTS, WIDE, generator=own(range(7)))
    if dtype == torch.float64:
        assert found == plain
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.logp[0] == pytest.approx(theirs.logp[0], abs=0.1)


def test_the_model_is_left_as_it_was_and_trains_on() -> None:
    lm = CausalLM(tiny_llama(attention_dropout=0.5, tie_word_embeddings=True)).train()
    frozen_part = lm.model.model.layers[0].eval()
    expected = said(CausalLM(tiny_llama(tie_word_embeddings=True)), range(7), WIDE)
    habits, weights = lm.model.generation_config, [p.clone() for p in lm.parameters()]
    randomness = torch.get_rng_state()
    assert said(lm, range(7), WIDE) == expected
    assert torch.equal(randomness, torch.get_rng_state())
    assert lm.model.generation_config is habits
    assert lm.training
    assert not frozen_part.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(p, w) for p, w in zip(lm.parameters(), weights, strict=True))
    assert all(p.grad is None and p.requires_grad for p in lm.parameters())
    lm.model(torch.tensor([PROMPTS[1]])).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())


def test_the_weights_are_read_anew_each_time() -> None:
    lm = CausalLM(tiny_llama())
    before = said(lm, range(7), WIDE)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=own([1])[0]) * 0.2)
    after = said(lm, range(7), WIDE)
    assert after != before
    assert after == generate(lm, PROMPTS, WIDE, generator=own(range(7)))


def with_adapter(model: PreTrainedModel) -> CausalLM:
    lm = CausalLM(model)
    add_lora(lm, rank=2, alpha=4.0, dropout=0.0, targets=None, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return lm


def test_an_adapter_writes_too_and_not_where_it_is_switched_off() -> None:
    lm = with_adapter(tiny_qwen2())
    assert said(lm, range(7), WIDE) == generate(lm, PROMPTS, WIDE, generator=own(range(7)))
    plain = said(CausalLM(tiny_qwen2()), range(7), WIDE)
    assert said(lm, range(7), WIDE) != plain
    with lora_off(lm):
        assert said(lm, range(7), WIDE) == plain


DYNAMIC = {**ROTARY, "rope_type": "dynamic"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: build(Gemma3TextConfig(**SIZES)), "family is gemma3_text"),
        (lambda: tiny_llama(rope_parameters=DYNAMIC), "rotary angles are dynamic"),
        (lambda: tiny_mistral(sliding_window=31), "reaches back 31 tokens of 32"),
        (
            lambda: tiny_qwen2(use_sliding_window=True, sliding_window=31, max_window_layers=1),
            "reaches back 31 tokens of 32",
        ),
    ],
)
def test_a_model_the_slots_do_not_know_is_refused_with_the_reason(make, reason: str) -> None:
    lm = CausalLM(make())
    assert reason in str(refusal(lm, num_tokens=32))
    with pytest.raises(ModelError, match=rf"{reason}; the engine must be hf or auto"):
        said(lm, [4], GREEDY)


def test_a_window_that_no_row_outgrows_is_none() -> None:
    lm = CausalLM(tiny_mistral(sliding_window=32))
    assert refusal(lm, num_tokens=32) is None
    assert said(lm, [4], GREEDY) == generate(lm, [PROMPTS[4]], GREEDY, generator=own([4]))


def test_an_adapter_in_half_precision_is_refused_for_what_merging_would_lose() -> None:
    lm = with_adapter(tiny_llama())
    assert refusal(lm, num_tokens=32) is None
    assert "adapter's small steps" in str(refusal(lm, num_tokens=32, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "adapter's small steps" in str(refusal(lm, num_tokens=32))
