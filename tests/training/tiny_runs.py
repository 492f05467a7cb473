"""Small real runs: tiny Llamas, ragged rows, a live teacher. Also a script for other processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import GenerationConfig

from tests.tiny_models import tiny_llama
from tutelage.core.records import Prompt, Rollout
from tutelage.models.causal_lm import CausalLM
from tutelage.objectives import Objective, from_settings
from tutelage.rollouts import (
    DatasetRollouts,
    MixedRollouts,
    Order,
    ReplayRollouts,
    RolloutSource,
    ShareClock,
    StudentRollouts,
    Writing,
)
from tutelage.rollouts.engines import Sampling
from tutelage.teachers.live import LiveTeacher
from tutelage.training import Event, Ranks, StepDone, StepRecord, Trainer, TrainingSettings

SIZES: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def rows(num_rows: int = 24, *, seed: int = 0) -> list[Rollout]:
    """Rows of very different lengths; some tokens in the middle of completions are untrained."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(3, 64, (length,), generator=generator).tolist())

    made: list[Rollout] = []
    for index in range(num_rows):
        completion = ids(1, 14)
        trained = tuple(place != 1 for place in range(len(completion))) if index % 3 == 0 else None
        prompt = Prompt(student_ids=ids(1, 9), name=f"rows.jsonl:{index + 1}")
        made.append(Rollout(prompt=prompt, completion_ids=completion, trained=trained))
    return made


def student(*, dropout: float = 0.0, **overrides: Any) -> CausalLM:
    return CausalLM(tiny_llama(1, **{**SIZES, "attention_dropout": dropout, **overrides}))


def teacher(*, remember_bytes: int = 0) -> LiveTeacher:
    return LiveTeacher(CausalLM(tiny_llama(2, **SIZES)), remember_bytes=remember_bytes)


def objective(kind: str = "forward_kl", **settings: Any) -> Objective:
    return from_settings({"kind": kind, **settings})


def settings(**overrides: Any) -> TrainingSettings:
    small: dict[str, Any] = {
        "num_steps": 6,
        "micro_batch_tokens": 64,
        "learning_rate": 3e-3,
        "save_every": None,
    }
    if "tokens_per_step" not in overrides:
        small["rows_per_step"] = 8
    return TrainingSettings(**{**small, **overrides})


def trainer(
    *, data: Sequence[Rollout] | None = None, ranks: Ranks | None = None, **fields: Any
) -> Trainer:
    """A trainer with everything filled in that `fields` does not give; `data` keeps its order."""
    ranks = ranks or Ranks()
    source = DatasetRollouts(
        data or rows(), seed=3, shuffle=data is None, rank=ranks.rank, num_ranks=ranks.num_ranks
    )
    given: dict[str, Any] = {
        "student": student(),
        "teacher": teacher(),
        "objective": objective(),
        "rollouts": source,
        "settings": settings(),
        **fields,
    }
    return Trainer(ranks=ranks, **given)


def on_policy(kind: str, lm: CausalLM, ranks: Ranks | None = None, **writing: Any) -> RolloutSource:
    """The student writes, all or a growing share, or anew what a buffer does not give."""
    ranks = ranks or Ranks()
    data = rows(20)
    order = Order(seed=5, rank=ranks.rank, num_ranks=ranks.num_ranks)
    # Every eighth token ends a completion, so that they end at many lengths.
    lm.model.generation_config = GenerationConfig(eos_token_id=list(range(0, 64, 8)))
    sampling = Sampling(max_completion_tokens=10, batch_rows=3)
    written = StudentRollouts(
        lm, [row.prompt for row in data], Writing(sampling=sampling, **writing), order
    )
    match kind:
        case "mixed":
            return MixedRollouts(
                written,
                DatasetRollouts(data, seed=5, rank=ranks.rank, num_ranks=ranks.num_ranks),
                clock=ShareClock("student_share", 0.3, 1.0),
            )
        case "replay":
            return ReplayRollouts(written, num_rows=12, clock=ShareClock("fresh_share", 1.0, 0.2))
        case _:
            return written


def weights(lm: CausalLM) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lm.named_parameters()}


def gradient_of_first_step(run: Trainer) -> dict[str, torch.Tensor]:
    """What the real Trainer hands to the optimizer on its first step."""
    named = dict(run.student.named_parameters())
    found: dict[str, torch.Tensor] = {}

    def look(*_: object) -> None:
        if not found:
            found.update({name: p.grad.clone() for name, p in named.items() if p.grad is not None})

    handle = register_optimizer_step_pre_hook(look)
    try:
        run.train()
    finally:
        handle.remove()
    return found


def watched(run: Trainer, look: Callable[[StepRecord], Any]) -> list[Any]:
    """Train, and list what `look` finds in each step."""
    found: list[Any] = []

    def hook(event: Event) -> None:
        if isinstance(event, StepDone):
            found.append(look(event.record))

    run.hooks = [*run.hooks, hook]
    run.train()
    return found


def losses(run: Trainer) -> list[float]:
    """Train, and list the loss of each step."""
    return watched(run, lambda record: record.totals.loss)
