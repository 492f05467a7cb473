import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from tests.tiny_models import SIZES, build, tiny_gemma2, tiny_llama
from tutelage.core.errors import ModelError
from tutelage.core.records import View
from tutelage.core.targets import Head
from tutelage.models import FAMILIES, CausalLM

LENGTHS = (5, 11, 3, 3, 17, 1)
"""Two neighbours of one length, a row of one token, rows longer than every sliding window."""

OWN_SIZES = {
    "cohere": {"logit_scale": 0.3, "tie_word_embeddings": True},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 8, "sliding_window_pattern": 2},
    "gemma2": {
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 4.0,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {
        "final_logit_softcapping": 5.0,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "intermediate_size": 16},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 8,
    },
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 2},
    "starcoder2": {"sliding_window": 8, "use_bias": True},
}

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def model_of(family: str) -> PreTrainedModel:
    dropouts = ("embd_pdrop", "resid_pdrop", "attn_pdrop", "attention_dropout", "residual_dropout")
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    if family.startswith("gemma") or family in ("qwen3", "qwen3_moe", "mistral"):
        sizes["head_dim"] = 8
    if family == "gpt2":
        sizes = {"vocab_size": SIZES["vocab_size"], "bos_token_id": 256, "eos_token_id": 257}
    config = AutoConfig.for_model(family, **{**sizes, **OWN_SIZES.get(family, {})})
    for name in dropouts:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = build(config)
    if FAMILIES[family].experts is not None:
        # The grouped matmul knows no double precision, which gradients are compared in.
        model.set_experts_implementation("eager")
    return model


def rows_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator) for length in lengths]


def view_of(rows: list[Tensor]) -> View:
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return View(
        input_ids=torch.cat(rows),
        position_ids=torch.cat([torch.arange(len(row)) for row in rows]),
        row_starts=starts,
        predicts=torch.arange(0),
    )


def logits_of(head: Head, hidden: Tensor) -> Tensor:
    logits = hidden @ head.weight.T
    logits = (logits if head.bias is None else logits + head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def gradients_of(lm: CausalLM, view: View) -> list[Tensor]:
    hidden = lm.hidden(view)
    weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    used = [p for p in lm.parameters() if p is not lm.head.weight and p is not lm.head.bias]
    return list(torch.autograd.grad((hidden * weights).sum(), used))


@every_family
def test_head_of_hidden_is_what_the_whole_model_answers(family: str) -> None:
    model, rows = model_of(family), rows_of()
    model.set_attn_implementation("eager")
    alone = [model(input_ids=row[None]).logits[0] for row in rows]
    lm = CausalLM(model)
    torch.testing.assert_close(
        logits_of(lm.head, lm.hidden(view_of(rows))), torch.cat(alone), rtol=1e-5, atol=1e-5
    )


@every_family
def test_packed_rows_padded_rows_and_rows_alone_are_the_same(family: str) -> None:
    model, rows = model_of(family), rows_of()
    packed, padded = (CausalLM(model, layout=layout) for layout in ("packed", "padded"))
    alone = torch.cat([packed.hidden(view_of([row])) for row in rows])
    torch.testing.assert_close(packed.hidden(view_of(rows)), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded.hidden(view_of(rows)), alone, rtol=1e-5, atol=1e-5)


@every_family
def test_packed_and_padded_rows_have_the_same_gradients(family: str) -> None:
    # In double precision: some families round inside their norms, none as much as in fp32.
    model, view = model_of(family).double(), view_of(rows_of())
    packed, padded = (
        gradients_of(CausalLM(model, layout=layout), view) for layout in ("packed", "padded")
    )
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)


@every_family
def test_changing_one_row_changes_no_other_row(family: str) -> None:
    lm, rows = CausalLM(model_of(family)), rows_of()
    before = lm.hidden(view_of(rows)).split(LENGTHS)
    rows[1] = (rows[1] + 7) % 256
    after = lm.hidden(view_of(rows)).split(LENGTHS)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True, True, True, True]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_later_token_changes_no_earlier_one(layout: str) -> None:
    lm, (row,) = CausalLM(tiny_llama(), layout=layout), rows_of((9,))
    before = lm.hidden(view_of([row]))
    row[6] += 1
    after = lm.hidden(view_of([row]))
    torch.testing.assert_close(before[:6], after[:6])
    assert not torch.equal(before[6:], after[6:])


def test_the_order_of_rows_only_orders_the_answer() -> None:
    lm, rows = CausalLM(tiny_llama()), rows_of()
    forwards = lm.hidden(view_of(rows)).split(LENGTHS)
    backwards = lm.hidden(view_of(rows[::-1])).split(LENGTHS[::-1])
    for a, b in zip(forwards, backwards[::-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_row_without_tokens_is_passed_over() -> None:
    lm, rows = CausalLM(tiny_llama()), rows_of()
    empty = torch.zeros(0, dtype=torch.long)
    torch.testing.assert_close(
        lm.hidden(view_of([rows[0], empty, rows[1]])), lm.hidden(view_of(rows[:2]))
    )


def test_gradient_checkpointing_changes_nothing() -> None:
    lm, view = CausalLM(tiny_llama()), view_of(rows_of())
    plain = gradients_of(lm.train(), view)
    lm.model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients_of(lm.train(), view), plain)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_embedding_of_eos_learns_though_it_is_the_padding_too(layout: str) -> None:
    lm = CausalLM(tiny_llama(), layout=layout)
    eos = lm.config.eos_token_id
    assert lm.config.pad_token_id == eos
    lm.hidden(view_of([torch.tensor([3, eos, 5]), torch.tensor([4])])).square().sum().backward()
    assert lm.model.model.embed_tokens.weight.grad[eos].abs().sum() > 0


def test_autocast_computes_in_bfloat16_close_to_float32() -> None:
    lm, view = CausalLM(tiny_llama()), view_of(rows_of())
    exact = lm.hidden(view)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = lm.hidden(view)
    assert 0 < (rounded.float() - exact).abs().max() < 0.1


def test_no_logits_are_computed_for_hidden_states() -> None:
    lm = CausalLM(tiny_llama())
    lm.model.lm_head.register_forward_hook(lambda *_: pytest.fail("the head was called"))
    lm.hidden(view_of(rows_of()))


def test_the_head_is_the_models_own_weight_tied_or_not() -> None:
    for tied in (True, False):
        model = tiny_llama(tie_word_embeddings=tied)
        weight = CausalLM(model).head.weight
        assert weight is model.lm_head.weight
        assert (weight is model.model.embed_tokens.weight) == tied


def test_a_tied_weight_counts_once() -> None:
    tied, untied = (CausalLM(tiny_llama(tie_word_embeddings=t)) for t in (True, False))
    assert untied.num_parameters() - tied.num_parameters() == untied.head.weight.numel()
    untied.model.requires_grad_(requires_grad=False)
    assert untied.num_parameters(trainable_only=True) == 0


def test_generation_after_wrapping_is_generation_before_it() -> None:
    prompts = torch.stack([rows_of((6,), seed)[0] for seed in range(3)])
    mask = torch.ones_like(prompts)
    mask[1, :2] = 0
    for model in (tiny_llama(), tiny_gemma2()):
        asked = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
        before = model.generate(prompts, **asked)
        after = CausalLM(model).model.generate(prompts, **asked)
        assert torch.equal(before, after)


def test_an_unknown_family_is_refused_with_advice() -> None:
    model = tiny_llama()
    model.config.model_type = "perceptron"
    with pytest.raises(ModelError, match=r"'perceptron'; it must be one of .*llama.* Choose"):
        CausalLM(model)
