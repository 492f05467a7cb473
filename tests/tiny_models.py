"""Tiny random transformers models and a byte-level tokenizer, built in memory, no downloads.

The default vocabulary is the byte tokenizer's, so any model here can be used with it.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

BOS, EOS, TURN_START, TURN_END = "<s>", "</s>", "<|turn|>", "<|end|>"
SPECIAL = (BOS, EOS, TURN_START, TURN_END)
VOCABULARY = 256 + len(SPECIAL)
"""Entries of the byte tokenizer: one for each byte, then the special ones."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "tie_word_embeddings": False,
}


def build(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """The config's model in float32 and eval mode, its random weights large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                # Biases and norm weights start at 0 or 1, where a forgotten one goes unnoticed.
                noise = 0.2 if parameter.dim() > 1 else 0.05
                parameter.add_(torch.randn(parameter.shape) * noise)
    return model.eval()


def tiny_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """Two layers, width 32, four heads on two key-value heads, its own head (or a tied one)."""
    model = build(LlamaConfig(**{**SIZES, **overrides}), seed=seed)
    assert isinstance(model, LlamaForCausalLM)
    return model


def tiny_qwen2(seed: int = 0, **overrides: Any) -> Qwen2ForCausalLM:
    """As `tiny_llama`, with biases on the attention's projections."""
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    model = build(Qwen2Config(**{**sizes, **overrides}), seed=seed)
    assert isinstance(model, Qwen2ForCausalLM)
    return model


def tiny_qwen3(seed: int = 0, **overrides: Any) -> Qwen3ForCausalLM:
    """As `tiny_llama`, with norms on queries and keys."""
    model = build(Qwen3Config(**{**SIZES, **overrides}), seed=seed)
    assert isinstance(model, Qwen3ForCausalLM)
    return model


def tiny_gemma2(seed: int = 0, **overrides: Any) -> Gemma2ForCausalLM:
    """Soft-capped logits and attention, sliding windows of 8 on every other layer, tied."""
    extra = {"sliding_window": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
    caps = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 4.0}
    model = build(Gemma2Config(**{**SIZES, **extra, **caps, **overrides}), seed=seed)
    assert isinstance(model, Gemma2ForCausalLM)
    return model


def tiny_gemma3(seed: int = 0, **overrides: Any) -> Gemma3ForCausalLM:
    """Sliding windows of 8 on the first layer, full attention on the second, tied."""
    extra = {
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    model = build(Gemma3TextConfig(**{**SIZES, **extra, **overrides}), seed=seed)
    assert isinstance(model, Gemma3ForCausalLM)
    return model


@lru_cache
def _byte_backend() -> str:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend.to_str()


def byte_tokenizer(
    chat_template: str | None = CHAT_TEMPLATE, *, pad_token: str | None = EOS
) -> PreTrainedTokenizerFast:
    """One entry a byte and four special ones (256 to 259); padding is the EOS, as in SmolLM2.

    `TURN_END` ends a chat turn, `EOS` a plain text.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_backend()),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=pad_token,
        additional_special_tokens=[TURN_START, TURN_END],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def write_gguf(path: Path, seed: int = 0) -> None:
    """A GGUF of a tiny Llama, as llama.cpp would name its parts."""
    model = tiny_llama(seed, tie_word_embeddings=True)
    config, tokenizer = model.config, byte_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    # Transformers adds the first of these to any such tokenizer; the second is for the one merge.
    words[254:256] = ["<|endoftext|>", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * 254 + [3, 1] + [3] * 4)
    writer.add_token_merges(["a b"])
    for name in ("bos", "eos", "pad", "unk"):
        getattr(writer, f"add_{name}_token_id")(256 if name == "bos" else 257)
    writer.add_chat_template(tokenizer.chat_template)
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = {
        "token_embd": model.model.embed_tokens.weight,
        "output_norm": model.model.norm.weight,
    }
    for at, layer in enumerate(model.model.layers):
        for ours, theirs in parts.items():
            weights[f"blk.{at}.{theirs}"] = layer.get_submodule(ours).weight
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
