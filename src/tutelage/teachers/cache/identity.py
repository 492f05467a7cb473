"""What a cache is: whose answers, to which language, in which form. Written once, never changed."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, final

import torch
from annotated_types import Ge, Gt
from pydantic import NonNegativeInt, PositiveInt, ValidationError
from torch import nn

from tutelage.core.errors import DataError
from tutelage.core.run_log import write_json
from tutelage.core.settings import Settings
from tutelage.objectives import Answer

FORMAT = 1
MANIFEST = "manifest.json"
_NUMBERS_A_WEIGHT = 64

StoredDtype = Literal["float32", "bfloat16", "float16"]


@final
class AnswerSettings(Settings):
    """What is kept of each answer."""

    answer: Answer = "hidden"
    """`hidden` is exact for every objective; `top_k` the likeliest entries; `sampled` drawn ids."""
    num_entries: PositiveInt = 32
    """Likeliest entries kept (K), of `top_k`."""
    num_samples: PositiveInt = 50
    """Ids drawn with replacement at each position, of `sampled`."""
    proposal_temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the logits that ids are drawn by, of `sampled`; weights undo it. The paper's power
    of the proposal is its inverse."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the draws; each row draws for itself."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the teacher's logits before they become probabilities; 1 for hidden states, which
    serve any."""
    dtype: StoredDtype = "float16"
    """What hidden states or log-probabilities are stored in."""


@final
class HeadShape(Settings):
    """The teacher's head, but for its numbers, which are in `head.safetensors`."""

    scale: float = 1.0
    softcap: float | None = None
    sha256: str
    """Of the file."""


@final
class Identity(Settings):
    """The manifest of a cache; rows of two caches may be mixed only where all of it is equal."""

    format: int = FORMAT
    code_version: str
    """Of this package, which wrote it; for information."""
    teacher: dict[str, Any]
    """The settings of the teacher, as in a recipe."""
    held_in: StoredDtype
    """The dtype of its weights, and so of its hidden states."""
    weights: str
    """A hash over some of the numbers in each of the teacher's weights."""
    tokenizer: str
    """A hash over the words that student and teacher share."""
    template: str
    """A hash over the chat templates and their arguments."""
    num_real: NonNegativeInt
    """Vocabulary entries that mean something to both; answers are over these."""
    answers: AnswerSettings
    head: HeadShape

    def save(self, folder: Path) -> None:
        """Write the manifest, whole or not at all.

        Raises:
            OutputError: the folder cannot be written.
        """
        write_json(folder / MANIFEST, self.model_dump(mode="json"))

    def differences(self, other: "Identity") -> list[str]:
        """Dotted names in which two caches differ, each with what it is here and there."""
        mine, theirs = _dotted(self), _dotted(other)
        return [
            f"{name} is {mine.get(name)}; it must be {theirs.get(name)}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


def load_identity(folder: Path) -> Identity:
    """The manifest of a cache.

    Raises:
        DataError: there is none, or it is damaged or of another format; names the file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {MANIFEST}; it must be a folder written by `tutelage cache`. "
            "Check the path, or make the cache."
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        found = tree.get("format") if isinstance(tree, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{path} has format {found}; it must be {FORMAT}. Make the cache again with this "
                "version of the package."
            )
        return Identity.model_validate(tree)
    except (ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        reason = _first(error) if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"{path} is damaged ({reason}); it must be as it was written. Restore it, or make the "
            "cache again."
        ) from error


def code_version() -> str:
    """Of this package."""
    return version("tutelage")


def stored_dtype(dtype: torch.dtype) -> StoredDtype:
    """What numbers of this type are kept in without loss, or in float32."""
    name = str(dtype).removeprefix("torch.")
    return "bfloat16" if name == "bfloat16" else "float16" if name == "float16" else "float32"


@torch.no_grad()
def weights_hash(model: nn.Module) -> str:
    """Of a few numbers of every weight, spread over it: tells checkpoints apart, not bits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        step = max(len(flat) // _NUMBERS_A_WEIGHT, 1)
        some = flat[::step][:_NUMBERS_A_WEIGHT].float().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def _dotted(identity: Identity) -> dict[str, Any]:
    tree = identity.model_dump(mode="json", exclude={"code_version"})
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        inside = value.items() if isinstance(value, dict) else ()
        flat |= {f"{name}.{key}": one for key, one in inside} or {name: value}
    return flat


def _first(error: ValidationError) -> str:
    mistake = error.errors()[0]
    return f"{'.'.join(str(step) for step in mistake['loc'])}: {mistake['msg']}"
