"""The student's weights as files that vLLM reads, in memory where there is room."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.core.errors import ModelError, OutputError
from tutelage.models import CausalLM, has_lora, plain_copy
from tutelage.models.quiet import quiet
from tutelage.models.routers.keep import has_bias, state_to_save

_MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own inside of it, which is private
_SPARE = 1.2
_FILES = "*.safetensors*"
"""Weights, and the index of those that are in several files."""


def private_folder(lm: CausalLM, wanted: Path | None) -> Path:
    """A new folder that only this user can open, where the model's weights have room.

    Raises:
        OutputError: it cannot be made.
    """
    parent = wanted
    if parent is None:
        needed = _SPARE * sum(p.numel() * p.element_size() for p in lm.model.parameters())
        roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > needed
        parent = _MEMORY if roomy else Path(tempfile.gettempdir())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="tutelage-vllm-", dir=parent))
    except OSError as error:
        raise _unwritable(parent, error) from error


def write_weights(
    lm: CausalLM, folder: Path, *, earlier: Mapping[str, Tensor] | None = None
) -> None:
    """Config and weights as `save_pretrained` lays them out, an adapter merged; no tokenizer.

    What the folder held before goes first, so that both need not have room together.

    Args:
        earlier: weights to write in place of the model's own, as `read_weights` gave them.

    Raises:
        ModelError: the student has router biases, for which vLLM has no place.
        OutputError: the folder cannot be written.
    """
    if has_bias(lm.model):
        raise ModelError(
            "The student has router biases other than 0, for which vLLM has no place; it would "
            "draw from another model. Set rollouts.engine: hf, or train the routers without a bias."
        )
    model = plain_copy(lm).model if has_lora(lm) else lm.model
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        with quiet():
            model.save_pretrained(folder, state_dict=state_to_save(model))
        if earlier is not None:
            for path in folder.glob(_FILES):
                path.unlink()
            save_file(dict(earlier), folder / "model.safetensors", metadata={"format": "pt"})
    except OSError as error:
        raise _unwritable(folder, error) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """What `write_weights` wrote, by the names on disk."""
    paths = sorted(folder.glob("*.safetensors"))
    return {name: weight for path in paths for name, weight in load_file(path).items()}


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder} cannot be written ({error}); it must have room for the student's weights. "
        "Name another folder in rollouts.vllm.weights_folder."
    )
