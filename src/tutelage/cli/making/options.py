"""What `upcycle`, `reroute` and `prune` can all be asked."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tutelage.core.errors import ConfigError


class Dtype(StrEnum):
    """Names of what weights are kept in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="The dense model: a hub name, a folder, a .gguf file, or package:NAME.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the new model.")]
KeepLayers = Annotated[
    int | None,
    typer.Option(
        "--keep-layers", min=1, help="Drop the layers that change least, down to so many."
    ),
]
Calibration = Annotated[
    str,
    typer.Option("--calibration", metavar="DATA", help="Rows to watch the models on."),
]
Rows = Annotated[int, typer.Option("--rows", min=1, help="How many of them.")]
Seed = Annotated[int, typer.Option("--seed", help="Everything random follows from it.")]
Keep = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="What weights are kept in. [default: as they were saved]"),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a model that the folder holds.")
]

DEFAULT_CALIBRATION = "preset:demo.jsonl"
DEFAULT_ROWS = 32

_WORDS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\bsplit\.kind k", "--split k"),
    (r"\b(?:student\.)?split\.kind\b", "--split"),
    (r"\b(?:student\.)?router\.kind\b", "--router"),
    (r"\bsplit\.size_tolerance\b", "--size-tolerance"),
    (
        r"\bstudent\.(experts|active|shared|gates|keep_layers|keep_neurons)\b",
        lambda found: "--" + found.group(1).replace("_", "-"),
    ),
)


@contextmanager
def named_as_options() -> Generator[None]:
    """Inside, an error about a setting speaks of the option that sets it."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for pattern, word in _WORDS:
            text = re.sub(pattern, word, text)
        raise ConfigError(text) from error
