"""One layer's experts in their own process: forward and backward, seconds and memory."""

import contextlib
import sys
from pathlib import Path
from typing import Any

# As a script, this file's own folder is on the path, and not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.command import work_by
from benchmarks.measure import Answer, peak_bytes, reset_peak, timed
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from tutelage.models.routers.experts import SORTED_EXPERTS, register_experts

ENGINES = {"ours": SORTED_EXPERTS, "eager": "eager", "grouped_mm": "grouped_mm"}


def block_of(asked: dict[str, Any], dtype: torch.dtype) -> MixtralSparseMoeBlock:
    """A layer's router and experts with random weights, the same for everybody."""
    register_experts()
    config = MixtralConfig(
        hidden_size=asked["width"],
        intermediate_size=asked["expert_width"],
        num_local_experts=asked["experts"],
        num_experts_per_tok=asked["active"],
        experts_implementation=ENGINES[asked["engine"]],
    )
    block = MixtralSparseMoeBlock(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return block.to(dtype)


def work(asked: dict[str, Any]) -> Answer:
    """Route random tokens, forward and backward, as often as asked after a first time."""
    torch.set_num_threads(int(asked["threads"]))
    kind = asked["dtype"]
    dtype = torch.float64 if kind == "fp64" else torch.float32
    block = block_of(asked, dtype)
    generator = torch.Generator().manual_seed(1)
    sizes = (1, asked["tokens"], asked["width"])
    hidden = torch.randn(sizes, generator=generator, dtype=dtype).requires_grad_()
    cast = torch.autocast("cpu", torch.bfloat16) if kind == "bf16" else contextlib.nullcontext()

    def once() -> torch.Tensor:
        block.zero_grad(set_to_none=True)
        with cast:
            output = block(hidden)
        output = output[0] if isinstance(output, tuple) else output
        output.float().square().mean().backward()
        return output

    once()
    floor = reset_peak()
    with timed() as timing:
        for _ in range(asked["repeats"]):
            output = once()
    return {
        "wall_seconds": timing.wall_seconds / asked["repeats"],
        "cpu_seconds": timing.cpu_seconds / asked["repeats"],
        "memory_bytes": peak_bytes() - floor,
        "norm": float(output.detach().double().norm()),
    }


if __name__ == "__main__":
    work_by(work)
