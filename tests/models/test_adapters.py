"""Adapters: nothing at first, off without a trace, merged exactly, and loaded by plain peft."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config

from tests.tiny_models import SIZES, build, byte_tokenizer, tiny_gemma2, tiny_llama, tiny_qwen2
from tutelage.core.errors import ConfigError, ModelError
from tutelage.core.records import Prompt, Rollout, View
from tutelage.models import (
    CausalLM,
    add_lora,
    has_lora,
    load_model,
    lora_off,
    moving_weights,
    num_lora_parameters,
    plain_copy,
    save_lora,
    save_model,
)
from tutelage.text import collate


def tiny_gpt2():
    sizes = {"vocab_size": SIZES["vocab_size"], "n_embd": 32, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": 256, "eos_token_id": 257}
    return build(GPT2Config(**sizes, **ends, n_positions=64))


FAMILIES = [tiny_llama, tiny_qwen2, tiny_gemma2, tiny_gpt2]


def adapted(make=tiny_llama, *, moved: bool = True, dropout: float = 0.0, **options) -> CausalLM:
    lm = CausalLM(make())
    add_lora(
        lm,
        **{"rank": 4, "alpha": 12.0, "dropout": dropout, "targets": None, "seed": 5, **options},
    )
    if moved:
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if ".lora_B" in name:
                    parameter.normal_(std=0.2)
    return lm


def view() -> View:
    rows = [
        Rollout(prompt=Prompt(student_ids=(3, 9, 200)), completion_ids=(7, 8, 257)),
        Rollout(prompt=Prompt(student_ids=(77,)), completion_ids=(5, 6)),
    ]
    return collate(rows).student


def hidden(lm: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return lm.hidden(view())


@pytest.mark.parametrize("make", FAMILIES)
def test_a_new_adapter_changes_not_one_bit_and_is_all_that_trains(make) -> None:
    plain, lm = CausalLM(make()), adapted(make, moved=False)
    assert torch.equal(hidden(lm), hidden(plain))
    assert torch.equal(lm.head.weight, plain.head.weight)
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    counted = num_lora_parameters(plain.config, rank=4, targets=None)
    assert counted == lm.num_parameters(trainable_only=True)


def test_only_the_named_layers_are_adapted() -> None:
    lm = adapted(targets=["q_proj", "v_proj"])
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in moving_names(lm)}
    assert names == {"q_proj", "v_proj"}
    counted = num_lora_parameters(lm.config, rank=4, targets=["q_proj", "v_proj"])
    assert counted == lm.num_parameters(trainable_only=True)


def moving_names(lm: CausalLM) -> set[str]:
    return {name for name, p in lm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("target", ["nothing", "lm_head", "embed_tokens", "mlp", "proj"])
def test_a_target_that_is_no_inner_linear_layer_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=rf"student\.lora\.targets has '{target}'; each must"):
        adapted(targets=["q_proj", target])
    with pytest.raises(ConfigError, match=rf"student\.lora\.targets has '{target}'; each must"):
        num_lora_parameters(tiny_llama().config, rank=2, targets=[target])


def test_the_same_seed_makes_the_same_adapter_and_disturbs_no_other_randomness() -> None:
    before = torch.get_rng_state()
    first, again, other = adapted(moved=False), adapted(moved=False), adapted(moved=False, seed=6)
    assert torch.equal(before, torch.get_rng_state())
    name = "model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    matrices = [dict(lm.named_parameters())[name] for lm in (first, again, other)]
    assert torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])


def test_off_is_the_model_without_it_and_afterwards_everything_is_as_it_was() -> None:
    plain, lm = CausalLM(tiny_llama()), adapted()
    frozen = "model.model.layers.0.mlp.up_proj.lora_A.default.weight"
    dict(lm.named_parameters())[frozen].requires_grad = False
    trained, with_it = moving_names(lm), hidden(lm)
    with lora_off(lm):
        assert torch.equal(hidden(lm), hidden(plain))
        with lora_off(lm):
            assert torch.equal(hidden(lm), hidden(plain))
        assert torch.equal(hidden(lm), hidden(plain))
    assert not torch.equal(with_it, hidden(plain))
    assert torch.equal(hidden(lm), with_it)
    assert moving_names(lm) == trained


def test_the_adapter_is_back_when_what_happened_meanwhile_failed() -> None:
    lm = adapted()
    trained, with_it = moving_names(lm), hidden(lm)
    with pytest.raises(RuntimeError, match="on purpose"), lora_off(lm):
        raise RuntimeError("on purpose")
    assert torch.equal(hidden(lm), with_it)
    assert moving_names(lm) == trained


def test_a_model_without_an_adapter_has_none_to_switch_off_or_save(tmp_path: Path) -> None:
    plain = CausalLM(tiny_llama())
    assert not has_lora(plain)
    with pytest.raises(ModelError, match=r"without an adapter.*student\.lora"), lora_off(plain):
        pass
    with pytest.raises(ModelError, match="without an adapter"):
        save_lora(plain, tmp_path, source="x")


@pytest.mark.parametrize("make", FAMILIES)
def test_a_plain_copy_acts_as_the_adapted_model_and_shares_what_is_frozen(make) -> None:
    lm = adapted(make, dropout=0.5).train()
    copied = plain_copy(lm)
    assert not has_lora(copied)
    assert has_lora(lm)
    assert not copied.training
    assert not any(p.requires_grad for p in copied.parameters())
    torch.testing.assert_close(hidden(copied), hidden(lm.eval()), atol=2e-5, rtol=1e-4)
    assert copied.head.weight.data_ptr() == lm.head.weight.data_ptr()
    names = dict(copied.model.named_parameters())
    assert set(names) == {name for name, _ in CausalLM(make()).model.named_parameters()}
    for name, product in moving_weights(lm).items():
        assert torch.equal(names[name], product)
    assert not hasattr(copied.model, "peft_config")


def test_a_plain_copy_of_trained_weights_is_its_own() -> None:
    lm = CausalLM(tiny_llama(tie_word_embeddings=True))
    lm.model.model.norm.weight.requires_grad = False
    before = hidden(lm)
    copied = plain_copy(lm)
    assert copied.model.model.norm.weight is lm.model.model.norm.weight
    assert copied.head.weight.data_ptr() == copied.model.model.embed_tokens.weight.data_ptr()
    assert copied.head.weight.data_ptr() != lm.head.weight.data_ptr()
    with torch.no_grad():
        lm.head.weight.add_(1.0)
    assert torch.equal(hidden(copied), before)


def test_an_adapter_in_half_precision_is_trained_in_full() -> None:
    lm = adapted(lambda: tiny_llama().bfloat16())
    assert {p.dtype for p in lm.parameters() if p.requires_grad} == {torch.float32}
    assert hidden(lm).dtype == torch.bfloat16
    assert {product.dtype for product in moving_weights(lm).values()} == {torch.float32}
    assert plain_copy(lm).dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_student_is_plain_and_says_what_the_adapted_one_said(
    tmp_path: Path,
    tied: bool,  # noqa: FBT001 - handed over by name
) -> None:
    lm = adapted(lambda: tiny_llama(tie_word_embeddings=tied))
    save_model(lm, byte_tokenizer(), tmp_path / "student")
    assert has_lora(lm)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        expected = lm.model(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
        torch.testing.assert_close(plain(ids).logits, expected, atol=5e-5, rtol=1e-4)
    assert torch.equal(hidden(load_model(str(tmp_path / "student")).lm), hidden(plain_copy(lm)))
    assert not (tmp_path / "student" / "adapter_config.json").exists()


# peft 0.21 asks transformers 5.23 by a name that has been renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_adapter_alone_is_loaded_by_peft_onto_the_first_weights(tmp_path: Path) -> None:
    lm = adapted()
    save_lora(lm, tmp_path / "adapter", source="some/model")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, lm.model(ids).logits)
    assert loaded.peft_config["default"].base_model_name_or_path == "some/model"


def test_a_mixture_of_experts_takes_no_adapter() -> None:
    from transformers import MixtralConfig

    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 8, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    lm = CausalLM(build(MixtralConfig(**sizes, **heads)))
    with pytest.raises(ConfigError, match=r"student\.lora is given.*\(mixtral\).*must be null"):
        add_lora(lm, rank=2, alpha=2.0, dropout=0.0, targets=None, seed=0)
