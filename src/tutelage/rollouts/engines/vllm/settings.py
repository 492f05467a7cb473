"""What a run may choose about a vLLM that writes its completions."""

from pathlib import Path
from typing import Annotated, Literal, final

from annotated_types import Gt
from pydantic import PositiveInt, model_validator

from tutelage.core.settings import Settings


@final
class VllmSettings(Settings):
    """Who runs vLLM, and how often it is given the student's weights."""

    mode: Literal["colocate", "server"] = "colocate"
    """`colocate`: the run starts a vLLM of its own on this machine, behind a socket that only this
    user can open, and stops it at the end. `server`: one that you have started, at `url`, with
    VLLM_SERVER_DEV_MODE=1 and --logprobs-mode processed_logprobs."""
    url: str | None = None
    """Where the server is, such as http://127.0.0.1:8000; for `server` alone. Its key, if it wants
    one, is read from the environment variable VLLM_API_KEY."""
    python: str | None = None
    """The Python that has vLLM, for `colocate` alone; null looks at the environment variable
    TUTELAGE_VLLM_PYTHON, then for .venv-vllm/bin/python here, then at our own Python."""
    arguments: tuple[str, ...] = ()
    """More arguments for vLLM's server, such as [--tensor-parallel-size, "2"]; for `colocate`."""
    cache_gigabytes: Annotated[float, Gt(0)] = 1.0
    """Memory for keys and values; `colocate` alone."""
    sync_every: PositiveInt = 1
    """Optimiser steps after which vLLM is given the student's weights again. 1 writes every batch
    with the student as it is; above it the draws are older, and `training.weighting.importance`
    corrects for that."""
    weights_folder: Path | None = None
    """Where weights are handed over as files, readable by vLLM; null is memory (/dev/shm) where
    there is room, else the folder for temporary files. They are deleted at the end."""
    timeout_seconds: Annotated[float, Gt(0)] = 600.0
    """How long one completion may take, waiting for its turn included."""
    patience_seconds: Annotated[float, Gt(0)] = 600.0
    """How long the run waits for a server that is away, or for a start, before it gives up."""

    @model_validator(mode="after")
    def _of_one_mode(self) -> "VllmSettings":
        own = {"colocate": {"python", "arguments", "cache_gigabytes"}, "server": {"url"}}
        for mode, names in own.items():
            for name in sorted(names):
                # Compared with the default: a recipe that was written out in full has them all.
                value, default = getattr(self, name), type(self).model_fields[name].default
                if mode != self.mode and value != default:
                    raise ValueError(
                        f"{name} is {value}, and mode is {self.mode}; it must be left out there. "
                        f"Remove it, or set mode: {mode}."
                    )
        if self.mode == "server" and self.url is None:
            raise ValueError(
                "url is missing, and mode is server; it must be the server's address. Give one, "
                "such as http://127.0.0.1:8000, or set mode: colocate."
            )
        return self
