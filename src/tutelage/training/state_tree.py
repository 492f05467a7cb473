"""A tree of plain values and tensors as two files: JSON for the values, safetensors for the rest.

Optimizer states, generator states and clocks are such trees. Nothing is ever unpickled, so a
checkpoint from a stranger can do no more than hold wrong numbers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.core.errors import CheckpointError

Tree = Any
"""None, bool, int, float, str and tensors, in lists, tuples and dicts with plain keys."""

_KIND = "__kind__"


@runtime_checkable
class Stateful(Protocol):
    """Something that changes as a run goes on, and that a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: a `Tree`."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


def save_tree(tree: Tree, stem: Path) -> None:
    """Write `stem`.json and, next to it, `stem`.safetensors."""
    tensors: dict[str, Tensor] = {}
    encoded = _encode(tree, tensors)
    stem.with_suffix(".json").write_text(json.dumps(encoded), encoding="utf-8")
    save_tensors(tensors, stem.with_suffix(".safetensors"))


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors; a full disk is an `OSError`, as for any other file.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load_tree(stem: Path) -> Tree:
    """Read back what `save_tree` wrote, bit for bit; tensors come on the CPU.

    Raises:
        CheckpointError: a file is missing or is not what `save_tree` wrote.
    """
    try:
        encoded = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        return _decode(encoded, load_file(stem.with_suffix(".safetensors")))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        message = (
            f"{stem} is not readable ({error}); it must be a pair of .json and .safetensors files "
            "that this package wrote. Resume from an older checkpoint."
        )
        raise CheckpointError(message) from error


def _encode(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensor = tree.detach().to("cpu").contiguous()
        # safetensors refuses tensors that share memory, as two views of one buffer do.
        is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
        tensors[name] = tensor.clone() if is_view else tensor
        return {_KIND: "tensor", "name": name}
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Tree]", tree).items()
        if all(isinstance(key, str) and key != _KIND for key, _ in items):
            return {key: _encode(value, tensors) for key, value in items}
        return {_KIND: "dict", "items": [[key, _encode(value, tensors)] for key, value in items]}
    if isinstance(tree, tuple):
        values = cast("tuple[Tree, ...]", tree)
        return {_KIND: "tuple", "items": [_encode(value, tensors) for value in values]}
    if isinstance(tree, list):
        return [_encode(value, tensors) for value in cast("list[Tree]", tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    message = f"a state holds a {type(tree).__name__}, which a checkpoint cannot hold"
    raise TypeError(message)


def _decode(tree: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(tree, list):
        return [_decode(value, tensors) for value in cast("list[Tree]", tree)]
    if not isinstance(tree, dict):
        return tree
    encoded = cast("dict[str, Tree]", tree)
    match encoded.get(_KIND):
        case "tensor":
            return tensors[encoded["name"]]
        case "tuple":
            return tuple(_decode(value, tensors) for value in encoded["items"])
        case "dict":
            return {key: _decode(value, tensors) for key, value in encoded["items"]}
        case _:
            return {key: _decode(value, tensors) for key, value in encoded.items()}


def dotted(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(dotted(f"{prefix}.{key}", value))
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
