# pyright: basic
# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202, ARG002, D102, FBT002, PLC0415
# The door to TRL, which ships few types and may be missing; the signatures here are the trainers'.
"""A step as the peers take it: TRL's GKDTrainer, and a transformers Trainer with full logits.

Both are called as their users call them. What is changed is named here: the order of the rows
(every implementation sees the same), and the loss of each step is kept.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.command import work_by
from benchmarks.measure import Answer, peak_bytes, reset_peak, timed
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
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


def padded(rows: Batch) -> dict[str, torch.Tensor]:
    """A batch as transformers reads it: padded to its longest row, -100 where not trained.

    Its prompts come again, padded on the left, for trainers that complete them.
    """
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, mask, labels = [], [], []
    for prompt, completion in rows:
        num_left = longest - len(prompt) - len(completion)
        ids.append(prompt + completion + [0] * num_left)
        mask.append([1] * (longest - num_left) + [0] * num_left)
        labels.append([-100] * len(prompt) + completion + [-100] * num_left)
    widest = max(len(prompt) for prompt, _ in rows)
    columns = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "prompts": [[0] * (widest - len(prompt)) + prompt for prompt, _ in rows],
        "prompt_attention_mask": [
            [0] * (widest - len(prompt)) + [1] * len(prompt) for prompt, _ in rows
        ],
    }
    return {name: torch.tensor(column) for name, column in columns.items()}


class Rows(Dataset):
    """The batches themselves, one an item."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        return self._batches[number]


class StepTimes(TrainerCallback):
    """Ends one step and begins the next when the trainer says so."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._clock.begin()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._clock.end()
        self._clock.begin()


class NaiveTrainer(Trainer):
    """What one writes first: both models' full logits, and a KL in fp32 where it trains."""

    def __init__(self, *args, teacher_model, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_model = self.accelerator.prepare_model(teacher_model, evaluation_mode=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        for unused in ("prompts", "prompt_attention_mask"):
            inputs.pop(unused)
        trained = labels[:, 1:] != -100
        student_logits = model(**inputs, use_cache=False).logits[:, :-1][trained]
        with torch.no_grad():
            teacher_logits = self.teacher_model(**inputs, use_cache=False).logits[:, :-1][trained]
        student_logp = student_logits.float().log_softmax(-1)
        teacher_logp = teacher_logits.float().log_softmax(-1)
        divergence = torch.nn.functional.kl_div(
            student_logp, teacher_logp, log_target=True, reduction="sum"
        )
        return divergence / trained.sum()


def watched(
    trainer_class: type, batches: list[Batch], clock: StepClock, *, counts_written: bool
) -> type:
    """The same trainer, on these batches in this order, telling the clock every loss."""

    class Watched(trainer_class):
        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(Rows(batches), batch_size=None, collate_fn=padded)

        def compute_loss(self, model, inputs, *args, **kwargs):
            if counts_written:
                clock.written.append(int((inputs["labels"] != -100).sum()))
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            clock.losses.append(float(loss.detach()))
            return loss

    return Watched


def arguments(asked: Answer, *, num_steps: int, folder: str) -> dict[str, Any]:
    """What all trainers are told alike; `bf16` and checkpointing stay theirs unless asked."""
    chosen = {name: asked[name] for name in ("bf16", "gradient_checkpointing") if name in asked}
    return {
        "output_dir": folder,
        "use_cpu": True,
        "max_steps": num_steps,
        "per_device_train_batch_size": 8,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPSILON,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "logging_steps": 1_000_000,
        **chosen,
    }


def build(asked: Answer, batches: list[Batch], clock: StepClock, models: tuple) -> Trainer:
    """The trainer that was asked for, its models already loaded."""
    student, teacher = models
    folder = tempfile.mkdtemp(prefix="tutelage-benchmark-")
    told = arguments(asked, num_steps=len(batches), folder=folder)
    rows = [{"unused": 0}] * (8 * len(batches))
    shared = {"model": student, "teacher_model": teacher, "callbacks": [StepTimes(clock)]}
    if asked["trainer"] == "naive":
        trainer_class = watched(NaiveTrainer, batches, clock, counts_written=False)
        return trainer_class(args=TrainingArguments(**told), train_dataset=rows, **shared)

    import datasets
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # pyright: ignore[reportMissingImports]

    new_tokens = asked["new_tokens"]
    own = {"lmbda": 1.0, "max_new_tokens": new_tokens} if new_tokens else {"lmbda": 0.0}
    return watched(GKDTrainer, batches, clock, counts_written=bool(new_tokens))(
        args=GKDConfig(beta=0.0, temperature=1.0, **own, **told),
        processing_class=idle_tokenizer(end=end_of(student)),
        data_collator=padded,
        train_dataset=datasets.Dataset.from_list(rows),
        **shared,
    )


def end_of(model: PreTrainedModel) -> int:
    """The token behind which the model's answers end; 1, like any other, where it has none."""
    said = model.generation_config.eos_token_id if model.generation_config else None
    return 1 if said is None else said[0] if isinstance(said, list) else said


def idle_tokenizer(*, end: int) -> PreTrainedTokenizerFast:
    """TRL wants a tokenizer even where rows are ids already; only its special ids are read."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    pad, last = "<pad>", "<end>"
    words = Tokenizer(WordLevel({pad: 0, last: end}, unk_token=pad))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, eos_token=last)


def work(asked: Answer) -> Answer:
    """Load, forget the memory peak, train."""
    torch.set_num_threads(asked["threads"])
    if asked["trainer"] == "gkd":
        import trl.experimental.gkd  # noqa: F401  # pyright: ignore[reportMissingImports]  imports are not part of the peak
    folder = Path(asked["folder"])
    batches = read_batches(folder, num_steps=asked["num_steps"])
    student = load(folder / "student", dtype=torch.float32)
    teacher = load(folder / "teacher", dtype=getattr(torch, asked.get("teacher", "float32")))
    clock = StepClock()
    held = reset_peak()
    with timed() as timing:
        build(asked, batches, clock, (student, teacher)).train()
    answer = clock.answer(batches, memory_bytes=peak_bytes() - held)
    return {**answer, "whole_seconds": timing.wall_seconds}


if __name__ == "__main__":
    work_by(work)
