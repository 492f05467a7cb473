"""The doors to language models: how to load one, and what it is once it is here."""

from tutelage.models.adapters import (
    acting_weights,
    add_lora,
    has_lora,
    lora_off,
    moving_weights,
    num_lora_parameters,
    plain_copy,
    save_lora,
)
from tutelage.models.anatomy import FAMILIES, Anatomy, anatomy_of, layers_of
from tutelage.models.causal_lm import CausalLM, Layout
from tutelage.models.count import ParameterCount, parameter_count
from tutelage.models.gguf_files import cache_folder
from tutelage.models.hosts import HOSTS, Host, host_config, host_of
from tutelage.models.load import (
    LoadedClassifier,
    LoadedModel,
    load_classifier,
    load_config,
    load_model,
    load_tokenizer,
)
from tutelage.models.save import save_model

__all__ = [
    "FAMILIES",
    "HOSTS",
    "Anatomy",
    "CausalLM",
    "Host",
    "Layout",
    "LoadedClassifier",
    "LoadedModel",
    "ParameterCount",
    "acting_weights",
    "add_lora",
    "anatomy_of",
    "cache_folder",
    "has_lora",
    "host_config",
    "host_of",
    "layers_of",
    "load_classifier",
    "load_config",
    "load_model",
    "load_tokenizer",
    "lora_off",
    "moving_weights",
    "num_lora_parameters",
    "parameter_count",
    "plain_copy",
    "save_lora",
    "save_model",
]
