"""Small tokenizers of every kind that matters, trained on the spot, no downloads."""

import json
from functools import lru_cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import BOS, CHAT_TEMPLATE, EOS, TURN_END, TURN_START

TEXT = [
    "The student reads what the teacher wrote, and writes what the teacher will read.",
    "Two words are one; three words are one sentence, and four are another.",
    "naïve café, déjà vu: 日本語 and 한국어 and Ελληνικά, 🙂 and 👩‍🚀.",
    "1 and 2.\n12 and 13.\n123 and 124.\n\n\tif x == 3:\n\t\treturn y",
    "teaching students, reading teachers, rewriting sentences, unthinkable rethinking",
] * 4

UNKNOWN = "<unk>"

OTHER_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "<start>{{ message['role'] }}:{{ message['content'] }}<stop>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant:{% endif %}"
)


def _dressed(backend: Tokenizer, *, other: bool = False) -> PreTrainedTokenizerFast:
    names = ("<bos>", "<eos>", "<start>", "<stop>") if other else (BOS, EOS, TURN_START, TURN_END)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names[0],
        eos_token=names[1],
        pad_token=names[1],
        additional_special_tokens=list(names[2:]),
    )
    tokenizer.chat_template = OTHER_TEMPLATE if other else CHAT_TEMPLATE
    return tokenizer


@lru_cache
def _byte_level(num_entries: int) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend.to_str()


def byte_level(num_entries: int = 330, *, other: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM have.

    Args:
        other: with the names and the template of `sentence_piece`.
    """
    return _dressed(Tokenizer.from_str(_byte_level(num_entries)), other=other)


@lru_cache
def _sentence_piece(num_entries: int) -> str:
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?<=[a-z.,])(?=\u2581)"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries - 257,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz \u2581"),
        limit_alphabet=60,
        show_progress=False,
    )
    learner.train_from_iterator(TEXT, trainer)
    saved = json.loads(learner.to_str())["model"]
    words = [UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256)), *saved["vocab"]]
    backend = Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=[tuple(merge) for merge in saved["merges"]],
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = learner.normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend.to_str()


def sentence_piece(num_entries: int = 400) -> PreTrainedTokenizerFast:
    """As SentencePiece makes them, with escapes for bytes: Gemma's kind."""
    return _dressed(Tokenizer.from_str(_sentence_piece(num_entries)), other=True)


def prefixed_unigram() -> PreTrainedTokenizerFast:
    """A unigram model that puts a space in front of what it is given: Llama 2's and T5's kind."""
    letters = sorted({letter for text in TEXT for letter in text if letter not in " \n\t"})
    words = ["\u2581the", "\u2581and", "\u2581", "teach", "er", "ing", "read", "\n", "\t", *letters]
    vocabulary = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    vocabulary += [(word, -2.0 if len(word) > 1 else -6.0) for word in dict.fromkeys(words)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Metaspace(replacement="\u2581", prepend_scheme="always"),
        ]
    )
    return _dressed(backend, other=True)


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind, which says nothing about white space: understood by nobody here."""
    words = ["[UNK]", "the", "teach", "##er"]
    backend = Tokenizer(models.WordPiece({w: at for at, w in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return _dressed(backend)
