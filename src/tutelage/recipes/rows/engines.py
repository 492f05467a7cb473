"""vLLM as a recipe asks for it: what contradicts it, and the engine itself."""

from collections.abc import Iterator
from typing import Any, final

import torch

from tutelage.core.errors import ConfigError
from tutelage.models import CausalLM
from tutelage.recipes.config import Recipe
from tutelage.rollouts import WritingSettings
from tutelage.rollouts.engines import VllmEngine, VllmSettings
from tutelage.training import Ended, Event, Ranks, TrainingSettings

_HOTTEST = 2.0


def contradictions_of_engine(recipe: Recipe) -> Iterator[str]:
    """One line each."""
    if recipe.training.measure_drift and not _comparable(recipe):
        yield (
            "training.measure_drift is true, and no token is drawn from the whole distribution "
            "(the data's, or greedy, or with top_p or top_k); it must be null or false. Remove it."
        )
    settings = _written_by_vllm(recipe)
    if settings is None:
        return
    if settings.temperature > _HOTTEST:
        yield (
            f"rollouts.temperature is {settings.temperature:g}, and rollouts.engine is vllm, whose "
            f"API takes at most {_HOTTEST:g}. Lower it, or set rollouts.engine: auto."
        )
    if recipe.routing is not None and recipe.routing.moves_bias:
        yield (
            f"rollouts.engine is vllm, and routing.balance.kind is {recipe.routing.balance.kind}, "
            "which moves router biases that vLLM has no place for; it must be another engine. Set "
            "rollouts.engine: auto, or balance otherwise."
        )


def make_vllm(recipe: Recipe, student: CausalLM, ranks: Ranks) -> VllmEngine | None:
    """The engine where vLLM is to write; None elsewhere. Nothing starts before the first prompt.

    Raises:
        ConfigError: several processes would give their weights to one server.
        MissingDependencyError: there is no Python with vLLM where one is needed.
    """
    rollouts = _written_by_vllm(recipe)
    if rollouts is None:
        return None
    settings = rollouts.vllm or VllmSettings()
    if settings.mode == "server" and ranks.num_ranks > 1:
        raise ConfigError(
            f"rollouts.vllm.mode is server, and the run has {ranks.num_ranks} processes, which "
            "would write with it while it is given weights; it must be colocate, a vLLM for each. "
            "Change it, or train in one process."
        )
    wanted = rollouts.max_prompt_tokens + rollouts.max_completion_tokens
    most = student.config.get_text_config().max_position_embeddings
    half = recipe.training.precision == "bf16"
    return VllmEngine(
        settings,
        dtype=torch.bfloat16 if half else student.dtype,
        room=min(wanted, most) if most else wanted,
    )


def engine_identity(recipe: Recipe) -> dict[str, Any]:
    """What a resumed run must agree on: our own engines draw alike, vLLM does not."""
    rollouts = _written_by_vllm(recipe)
    if rollouts is None:
        return {}
    settings = rollouts.vllm or VllmSettings()
    return {"rollouts.engine": "vllm", "rollouts.vllm.sync_every": settings.sync_every}


def watched(recipe: Recipe) -> TrainingSettings:
    """The training settings, with the drift measured where vLLM writes and nobody said not to."""
    settings = recipe.training
    undecided = settings.measure_drift is None and _written_by_vllm(recipe) is not None
    if not (undecided and _comparable(recipe)):
        return settings
    return settings.model_copy(update={"measure_drift": True})


@final
class EngineCloser:
    """A hook that takes the engine down when the run ends, however it does."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def __call__(self, event: Event) -> None:
        """Nothing follows the end."""
        if isinstance(event, Ended):
            self._engine.close()


def _written_by_vllm(recipe: Recipe) -> WritingSettings | None:
    """The settings of the rollouts where vLLM writes them."""
    rollouts = recipe.rollouts
    if isinstance(rollouts, WritingSettings) and rollouts.engine == "vllm":
        return rollouts
    return None


def _comparable(recipe: Recipe) -> bool:
    """Whether tokens are drawn from the student's whole distribution."""
    settings = recipe.rollouts
    if not isinstance(settings, WritingSettings):
        return False
    return settings.temperature > 0 and settings.top_p == 1 and settings.top_k is None
