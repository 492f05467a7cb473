"""vLLM beside our own engines: tokens a second on the same prompts, and how far each one drifts.

    python benchmarks/engines.py --quick            few short rows, fp32
    python benchmarks/engines.py                    SmolLM2-135M, three rounds
    python benchmarks/engines.py --dtype bf16       both sides in bfloat16

All complete the same ragged prompts at temperature 1, every row to the same length, for none of
them may end early. vLLM runs as a recipe would run it: a process of its own, over a socket. Rounds
are interleaved in one process, whose engines are idle while another works. The drift is between
the log-probabilities an engine says it drew with and the student's own forward pass over what was
written. Needs `make vllm`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# As a script, this file's own folder is on the path, and not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.measure import machine_line, markdown_table
from benchmarks.rollouts_work import make_model, make_work
from transformers import GenerationConfig

from tutelage.core.records import Prompt, Rollout
from tutelage.models import CausalLM
from tutelage.rollouts.engines import (
    Completion,
    Sampling,
    VllmEngine,
    VllmSettings,
    generate,
    write_in_slots,
)
from tutelage.text import collate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = ("engine", "tokens/s", "x hf", "mean drift", "largest drift", "KL estimate")
LONGEST_PROMPT = 128
BLOCK_ROWS = 4

Write = Callable[[], list[Completion]]


def student(asked: argparse.Namespace) -> CausalLM:
    """The model, which never ends a completion."""
    model = make_model({"model": asked.model, "dtype": asked.dtype})
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    model.config.eos_token_id = None
    return CausalLM(model)


@torch.no_grad()
def drift(
    lm: CausalLM, prompts: Sequence[Sequence[int]], said: Sequence[Completion]
) -> tuple[float, float, float]:
    """Mean and largest |student - engine| in nats, and the estimate of KL(engine || student)."""
    gaps: list[torch.Tensor] = []
    for start in range(0, len(said), BLOCK_ROWS):
        pairs = list(zip(prompts, said, strict=True))[start : start + BLOCK_ROWS]
        batch = collate([
            Rollout(
                prompt=Prompt(student_ids=tuple(prompt)),
                completion_ids=one.ids,
                sampled_logp=one.logp,
            )
            for prompt, one in pairs
        ])  # fmt: skip
        hidden = lm.hidden(batch.student)[batch.student.predicts]
        logp = (hidden.float() @ lm.head.weight.float().T).log_softmax(-1)
        assert batch.sampled_logp is not None
        gaps.append(logp.gather(1, batch.labels.long()[:, None])[:, 0] - batch.sampled_logp)
    gap = torch.cat(gaps).double()
    return float(gap.abs().mean()), float(gap.abs().max()), float((gap.expm1() - gap).mean())


def rounds_of(writers: dict[str, Write], number: int) -> dict[str, list[float]]:
    """Seconds of each engine in each round; a warm-up before them does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for at in range(number + 1):
        for name, write in writers.items():
            started = time.perf_counter()
            write()
            if at:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def run(asked: argparse.Namespace) -> str:
    torch.set_num_threads(asked.threads)
    # What vLLM's process starts with.
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    lm = student(asked)
    work = make_work(
        {"prompts": asked.rows, "group": 1, "longest": 1}, entries=lm.config.vocab_size
    )
    sampling = Sampling(max_completion_tokens=asked.tokens, batch_rows=asked.batch)
    settings = VllmSettings(
        cache_gigabytes=asked.cache, arguments=("--enforce-eager",) if asked.eager else ()
    )
    vllm = VllmEngine(settings, dtype=DTYPES[asked.dtype], room=LONGEST_PROMPT + asked.tokens)

    def writer(engine: Callable[..., list[Completion]]) -> Write:
        def write() -> list[Completion]:
            own = [torch.Generator().manual_seed(row) for row in range(asked.rows)]
            return engine(lm, work.prompts, sampling, generator=own, num_real=None)

        return write

    writers = {"hf": writer(generate), "slots": writer(write_in_slots), "vllm": writer(vllm)}
    try:
        started = time.perf_counter()
        said = {name: write() for name, write in writers.items()}
        first = time.perf_counter() - started
        seconds = rounds_of(writers, asked.rounds)
        vllm.move(loss=0.0, step=0)
        started = time.perf_counter()
        writers["vllm"]()
        sync = time.perf_counter() - started - statistics.median(seconds["vllm"])
    finally:
        vllm.close()
    num_tokens = asked.rows * asked.tokens
    speed = {name: num_tokens / statistics.median(taken) for name, taken in seconds.items()}
    rows = [
        [
            name,
            f"{speed[name]:.0f}",
            f"{speed[name] / speed['hf']:.2f}",
            *(f"{value:.1e}" for value in drift(lm, work.prompts, said[name])),
        ]
        for name in writers
    ]
    notes = (
        f"{asked.model}, {asked.dtype}: {asked.rows} prompts of 48 to {LONGEST_PROMPT} tokens, "
        f"{asked.tokens} tokens each, {asked.batch} rows side by side, {asked.threads} thread(s); "
        f"{asked.rounds} interleaved round(s), medians. A sync takes about {max(sync, 0):.1f} s; "
        f"the first call of all three, vLLM's start included, took {first:.0f} s.\n"
        f"Machine: {machine_line()}."
    )
    return f"{markdown_table(COLUMNS, rows)}\n\n{notes}"


def asked_for(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 rows of 16 tokens, one round")
    parser.add_argument("--model", choices=("random50m", "smollm2"), default="smollm2")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--batch", type=int, default=16, help="rows side by side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=float, default=1.0, help="gigabytes of vLLM's cache")
    parser.add_argument("--eager", action="store_true", help="vLLM compiles nothing")
    asked = parser.parse_args(words)
    if asked.quick:
        asked.rows, asked.tokens, asked.rounds = 8, 16, 1
    return asked


if __name__ == "__main__":
    print(run(asked_for()))
