"""A model loaded and put behind HTTP, until Ctrl-C."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch

from tutelage.models import LoadedModel, load_model
from tutelage.recipes.narrator import Narrator, Silence
from tutelage.teachers.cache import code_version, save_head, stored_dtype, weights_hash
from tutelage.teachers.remote import Served
from tutelage.teachers.serving import Worker, make_app, refuse_open_door, run_app
from tutelage.text import tokenizer_hash


@final
@dataclass(frozen=True, kw_only=True)
class ServePlan:
    """What to serve, where, and to whom."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8077
    token: str | None = None
    batch_tokens: int = 0
    """Rows read side by side, up to so many tokens; 0 reads each by itself, so that its numbers
    are a function of the row alone."""


def serve_model(
    plan: ServePlan, *, ready: Callable[[Served, str], None], narrator: Narrator | None = None
) -> None:
    """Load the model and answer until Ctrl-C.

    Args:
        ready: is told what is served and its address.

    Raises:
        ConfigError: everybody would be let in, or the address is taken.
        ModelError: the model cannot be loaded.
    """
    refuse_open_door(plan.host, plan.token)
    with (narrator or Silence()).stage("Loading the model"):
        model = load_model(
            plan.model,
            dtype=None if plan.dtype == "auto" else getattr(torch, plan.dtype),
            device="cuda" if torch.cuda.is_available() else "cpu",
            revision=plan.revision,
            trust_remote_code=plan.trust_remote_code,
        )
    with tempfile.TemporaryDirectory(prefix="tutelage-serve-") as folder:
        served = describe(plan, model, Path(folder))
        worker = Worker(model.lm, batch_tokens=plan.batch_tokens, longest=served.longest)
        app = make_app(worker, served, Path(folder) / "head.safetensors", token=plan.token)
        run_app(app, host=plan.host, port=plan.port, ready=lambda url: ready(served, url))


def describe(plan: ServePlan, model: LoadedModel, folder: Path) -> Served:
    """What is served, its head written into the folder."""
    shape, head = save_head(folder, model.lm.head), model.lm.head
    text = model.lm.config.get_text_config()
    return Served(
        code_version=code_version(),
        model=plan.served_name or plan.model,
        revision=plan.revision,
        dtype=stored_dtype(model.lm.dtype),
        width=int(head.weight.shape[1]),
        num_entries=int(head.weight.shape[0]),
        num_words=len(model.tokenizer),
        tokenizer=tokenizer_hash(model.tokenizer),
        weights=weights_hash(model.lm.model),
        longest=int(getattr(text, "max_position_embeddings", 0) or 0),
        head=shape,
        head_bytes=(folder / "head.safetensors").stat().st_size,
    )
