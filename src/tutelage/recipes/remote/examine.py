"""A teacher's server looked over: is it there, whom does it serve, does it say what weights say."""

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.targets import HiddenTarget, LogitsTarget, Target, TopKTarget
from tutelage.models import LoadedModel, parameter_count
from tutelage.objectives.plain import plain_logits
from tutelage.recipes.caching import Language, Looked
from tutelage.recipes.config import Recipe, varied
from tutelage.recipes.pair import load_teacher, taught_live, teacher_config
from tutelage.recipes.remote.build import ask_for
from tutelage.recipes.rows import Rows
from tutelage.teachers import LiveTeacher, RemoteTeacher, RemoteTeacherSettings
from tutelage.text import collate

_MOST_PARAMETERS = 10**9
"""A larger teacher is not loaded to be compared with."""
_COMPARED = 20
"""Likeliest entries compared where the answer has all of them."""
_WITHIN = {"float32": 1e-3}
_WITHIN_HALF = 0.3
"""Nats that rounding explains, of a likely entry; another model, or a shift, is off by several."""


def look_at_server(recipe: Recipe, rows: Rows, language: Language) -> Iterator[Looked]:
    """What a run would meet, and how the server's numbers compare with those made here.

    Raises:
        RemoteError: the server does not answer, or serves another model.
        ConfigError: the token is missing or wrong.
    """
    settings = recipe.teacher
    assert isinstance(settings, RemoteTeacherSettings)  # noqa: S101  the caller has looked
    if settings.token_env is not None and _can_be_overheard(settings.url):
        text = f"{settings.url} is not https: whoever is on the way can read the token"
        yield Looked(wrong=False, text=text)
    # A look does not wait for a server that is away.
    asked = recipe.model_copy(
        update={"teacher": settings.model_copy(update={"patience_seconds": 0.0})}
    )
    teacher = ask_for(asked, language, settings.answer, device=torch.device("cpu"))
    told = ", ".join(f"{name} {value}" for name, value in teacher.identity.items())
    yield Looked(wrong=False, text=f"{settings.url} serves {settings.name_there} ({told})")
    yield _parity(recipe, rows, language, teacher)


def _can_be_overheard(url: str) -> bool:
    parts = urlsplit(url)
    try:
        inside = parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        inside = False
    return parts.scheme == "http" and not inside


def _parity(recipe: Recipe, rows: Rows, language: Language, teacher: RemoteTeacher) -> Looked:
    settings, config = recipe.teacher, teacher_config(recipe)
    assert isinstance(settings, RemoteTeacherSettings)  # noqa: S101  the caller has looked
    assert config is not None  # noqa: S101  teacher.model names it
    some = rows.training[: settings.parity_rows]
    batch = collate(some) if some else None
    found = None if batch is None else teacher.score(batch)
    size = parameter_count(config).total
    if batch is None or found is None or size > _MOST_PARAMETERS:
        why = "teacher.parity_rows is 0" if batch is None else f"{size / 1e9:.1f} G parameters"
        return Looked(wrong=False, text=f"was not compared with weights here ({why})")
    try:
        model = _weights(recipe, teacher)
    except TutelageError as error:
        return Looked(wrong=False, text=f"cannot be compared with weights here: {error}")
    here = LiveTeacher(model.lm, num_real=language.num_real).score(batch)
    worst = _furthest(found, here, settings.temperature if settings.answer == "top_k" else 1.0)
    dtype = str(model.lm.dtype).removeprefix("torch.")
    # vLLM does not say what it computes in, and by default it is a half.
    within = _WITHIN_HALF if settings.api == "vllm" else _WITHIN.get(dtype, _WITHIN_HALF)
    text = f"says what its weights say here ({dtype}) on {len(some)} rows, within {worst:.1e} nats"
    if not worst <= within:
        text = (
            f"is off by {worst:.1e} nats from its weights here ({dtype}) on {len(some)} rows, "
            f"where rounding explains {within:g}; see which weights it serves"
        )
    return Looked(wrong=not worst <= within, text=text)


def _weights(recipe: Recipe, teacher: RemoteTeacher) -> LoadedModel:
    """The teacher's weights here, in the dtype they are served in where the server tells it."""
    live = taught_live(recipe)
    if "dtype" in teacher.identity:
        live = varied(live, {"teacher": {"dtype": teacher.identity["dtype"]}})
    return load_teacher(live, torch.device("cpu"))


def _furthest(found: Target, here: HiddenTarget, temperature: float) -> float:
    """The largest difference of a likely entry's log-probability, in nats."""
    mine = _logp(plain_logits(here.hidden, here.head, torch.float32), temperature)
    theirs, ids = _likely(found)
    return float((theirs.float() - mine.gather(1, ids)).abs().max())


def _likely(found: Target) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    match found:
        case TopKTarget():
            return found.logp, found.ids
        case HiddenTarget():
            logits = plain_logits(found.hidden, found.head, torch.float32)
        case LogitsTarget():
            logits = found.logits[:, : found.num_real]
        case _:
            raise AssertionError(type(found))
    logp, ids = _logp(logits, 1.0).topk(min(_COMPARED, logits.shape[1]), dim=1)
    return logp, ids


def _logp(logits: Float[Tensor, "N V"], temperature: float) -> Float[Tensor, "N V"]:
    return (logits / temperature).log_softmax(dim=1)
