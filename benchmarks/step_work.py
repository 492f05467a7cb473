"""The work that every implementation of a step is given, and the clock that times it.

A folder holds the pair of models as transformers saves them, and the rows of every step as ids.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.measure import Answer, timed
from transformers import AutoModelForCausalLM, PreTrainedModel

Row = tuple[list[int], list[int]]
Batch = list[Row]

LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0
BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.0


def write_batches(folder: Path, batches: Sequence[Batch]) -> None:
    """Keep the rows beside the models, so that every process reads the same."""
    (folder / "batches.json").write_text(json.dumps(batches), encoding="utf-8")


def read_batches(folder: Path, *, num_steps: int) -> list[Batch]:
    """The rows of the first steps."""
    batches = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    assert len(batches) >= num_steps, f"{folder} holds {len(batches)} batches, not {num_steps}"
    return [[(list(p), list(c)) for p, c in batch] for batch in batches[:num_steps]]


def num_tokens(batch: Batch) -> int:
    """Tokens a model has to read, padding not counted."""
    return sum(len(prompt) + len(completion) for prompt, completion in batch)


def num_trained(batch: Batch) -> int:
    """Completion tokens: those the loss is the mean over."""
    return sum(len(completion) for _, completion in batch)


def load(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """One of the pair as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def probe_seconds() -> float:
    """A fixed matrix product, timed: when it moves between processes, so did the machine."""
    left, right, out = torch.ones(1024, 1024), torch.ones(1024, 1024), torch.empty(1024, 1024)
    torch.mm(left, right, out=out)
    with timed() as timing:
        for _ in range(10):
            torch.mm(left, right, out=out)
    return timing.wall_seconds


class StepClock:
    """Notes the end of each step; what lies between two ends is one step, all of it."""

    def __init__(self) -> None:
        self.wall_seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.losses: list[float] = []
        self.written: list[int] = []
        """Completion tokens of each step, where the student writes them itself."""
        self._began = (0.0, 0.0)

    def begin(self) -> None:
        """A step begins now."""
        self._began = (time.perf_counter(), time.process_time())

    def end(self) -> None:
        """The step that began last ends now."""
        wall, cpu = self._began
        self.wall_seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)

    def answer(self, batches: Sequence[Batch], *, memory_bytes: int) -> Answer:
        """What a worker says: the first step apart, since it pays for lazy allocations.

        Tokens are all those read of the batches; of a student that writes, those it wrote.
        """
        num_timed = sum((self.written or [num_tokens(batch) for batch in batches])[1:])
        wall, cpu = sum(self.wall_seconds[1:]), sum(self.cpu_seconds[1:])
        return {
            "tokens_per_second": num_timed / wall,
            "step_seconds": wall / (len(batches) - 1),
            "first_step_seconds": self.wall_seconds[0],
            "cpu_per_wall": cpu / wall,
            "memory_bytes": memory_bytes,
            "losses": self.losses,
            "written": self.written,
            "probe_seconds": probe_seconds(),
        }
