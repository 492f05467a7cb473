"""A step as this package takes it: the public Trainer on rows laid end to end."""

from pathlib import Path

import torch
from benchmarks.command import work_by
from benchmarks.measure import Answer, peak_bytes, reset_peak
from benchmarks.step_work import (
    BETAS,
    EPSILON,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    WEIGHT_DECAY,
    Batch,
    StepClock,
    load,
    read_batches,
)

from tutelage.core.records import Prompt, Rollout
from tutelage.models import CausalLM
from tutelage.objectives import from_settings
from tutelage.rollouts import DatasetRollouts, Order, RolloutSource, StudentRollouts, Writing
from tutelage.rollouts.engines import Sampling
from tutelage.teachers import LiveTeacher
from tutelage.training import Collected, Event, Started, StepDone, Trainer, TrainingSettings


class StepEnds:
    """Ends one step and begins the next where the trainer says that a step is done."""

    def __init__(self, clock: StepClock, *, counts_written: bool) -> None:
        self._clock = clock
        self._counts_written = counts_written

    def __call__(self, event: Event) -> None:
        """Listen to the trainer."""
        match event:
            case Started():
                self._clock.begin()
            case Collected(rollouts=rows) if self._counts_written:
                self._clock.written.append(sum(len(row.completion_ids) for row in rows))
            case StepDone(record=record):
                self._clock.losses.append(record.totals.loss)
                self._clock.end()
                self._clock.begin()
            case _:
                pass


def settings_of(asked: Answer, batches: list[Batch]) -> TrainingSettings:
    """The peers' optimizer and rows; the rest stays as our users get it."""
    return TrainingSettings(
        num_steps=len(batches),
        rows_per_step=len(batches[0]),
        learning_rate=LEARNING_RATE,
        schedule="constant",
        max_grad_norm=MAX_GRAD_NORM,
        precision=asked["precision"],
        loss_logits=asked.get("logits", "auto"),
        betas=BETAS,
        epsilon=EPSILON,
        weight_decay=WEIGHT_DECAY,
    )


def rollouts_of(batches: list[Batch]) -> list[Rollout]:
    """The rows in the order in which every implementation reads them."""
    return [
        Rollout(prompt=Prompt(student_ids=tuple(prompt)), completion_ids=tuple(completion))
        for batch in batches
        for prompt, completion in batch
    ]


def source_of(asked: Answer, batches: list[Batch], student: CausalLM) -> RolloutSource:
    """The rows as they are, or the student's own completions of their prompts."""
    rows = rollouts_of(batches)
    if not asked["new_tokens"]:
        return DatasetRollouts(rows, shuffle=False)
    writing = Writing(
        sampling=Sampling(max_completion_tokens=asked["new_tokens"]),
        dtype=torch.bfloat16 if asked["precision"] == "bf16" else None,
    )
    return StudentRollouts(student, [row.prompt for row in rows], writing, Order(shuffle=False))


def work(asked: Answer) -> Answer:
    """Load, forget the memory peak, train."""
    torch.set_num_threads(asked["threads"])
    folder = Path(asked["folder"])
    batches = read_batches(folder, num_steps=asked["num_steps"])
    half = asked["precision"] == "bf16"
    student = CausalLM(load(folder / "student", dtype=torch.float32))
    teacher = CausalLM(load(folder / "teacher", dtype=torch.bfloat16 if half else torch.float32))
    clock = StepClock()
    held = reset_peak()
    Trainer(
        student=student,
        teacher=LiveTeacher(teacher),
        objective=from_settings({"kind": "forward_kl"}),
        rollouts=source_of(asked, batches, student),
        settings=settings_of(asked, batches),
        hooks=[StepEnds(clock, counts_written=bool(asked["new_tokens"]))],
    ).train()
    return clock.answer(batches, memory_bytes=peak_bytes() - held)


if __name__ == "__main__":
    work_by(work)
