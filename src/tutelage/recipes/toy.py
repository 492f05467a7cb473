# pyright: basic
# A door to `tokenizers`, whose types are partial.
"""A tiny random teacher over bytes: a whole run in seconds, with nothing to read or download."""

import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutelage.core.seeds import seed_for
from tutelage.models import CausalLM, LoadedModel
from tutelage.recipes.config import ToyTeacherSettings

_BEGIN, _END_OF_TURN, _PADDING, _TURN = "<s>", "<|end|>", "<|pad|>", "<|turn|>"
_NUM_BYTES = 256
_TEMPLATE = (
    "{% for message in messages %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def toy_config(settings: ToyTeacherSettings) -> LlamaConfig:
    """A Llama of a few thousand parameters."""
    return LlamaConfig(
        vocab_size=_NUM_BYTES + 4,
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=_NUM_BYTES,
        eos_token_id=_NUM_BYTES + 1,
        pad_token_id=_NUM_BYTES + 2,
        tie_word_embeddings=False,
    )


def toy_teacher(settings: ToyTeacherSettings) -> LoadedModel:
    """The model, the same for the same settings everywhere, and its tokenizer."""
    config = toy_config(settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, "toy"))
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            # A normalised hidden state has length sqrt(width), so this spread is the logits' own.
            spread = settings.sharpness / math.sqrt(settings.width)
            model.lm_head.weight.normal_(std=spread)
            for layer in model.model.layers:
                for weight in layer.parameters():
                    if weight.dim() > 1:
                        weight.normal_(std=1 / math.sqrt(weight.shape[1]))
            model.model.embed_tokens.weight.normal_()
    return LoadedModel(lm=CausalLM(model.eval()), tokenizer=byte_tokenizer(), source="toy")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One entry a byte, then four special ones with the ids that `toy_config` names."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_BEGIN,
        eos_token=_END_OF_TURN,
        pad_token=_PADDING,
        additional_special_tokens=[_TURN],
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
