"""Models on disk: the plain `save_pretrained` layout, whole or not there."""

import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.core.errors import OutputError
from tutelage.core.files import sync
from tutelage.models.adapters import has_lora, plain_copy
from tutelage.models.causal_lm import CausalLM
from tutelage.models.quiet import quiet
from tutelage.models.routers.keep import describe_bias, state_to_save


def save_model(lm: CausalLM, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write weights, config, generation config and tokenizer, then give them their name.

    The folder is loaded by plain `AutoModelForCausalLM.from_pretrained`; an adapter is merged into
    the weights it stands beside. A model that is already
    there is replaced at once, files beside it (a model card) are kept.

    Raises:
        OutputError: when the folder holds something else, or cannot be written.
    """
    target = Path(folder).expanduser()
    if target.exists() and not _is_model_or_empty(target):
        message = (
            f"The output folder {target} holds other files; it must be new, empty or a model's. "
            "Choose another folder."
        )
        raise OutputError(message)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".part-{target.name}-", dir=target.parent))
        try:
            model = plain_copy(lm).model if has_lora(lm) else lm.model
            write_model(model, tokenizer, part)
            _swap(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        message = (
            f"The output folder {target} cannot be written ({error}); it must be writable and "
            "have room. Choose another folder."
        )
        raise OutputError(message) from error
    return target


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_pretrained` of both into a folder that exists, flushed to the disk."""
    with quiet():
        model.save_pretrained(folder, state_dict=state_to_save(model))
        describe_bias(model, folder)
        tokenizer.save_pretrained(folder)
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _is_model_or_empty(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))


def _swap(part: Path, target: Path) -> None:
    part.chmod(0o755)
    if not target.exists():
        part.rename(target)
        return
    written = {path.name for path in part.iterdir()}
    for path in target.iterdir():
        weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.name not in written and not weights:
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, part / path.name)
    old = Path(tempfile.mkdtemp(prefix=f".old-{target.name}-", dir=target.parent))
    target.rename(old / target.name)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
