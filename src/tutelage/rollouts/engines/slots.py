"""Completions written in slots: a row that ends makes room for the next prompt at once.

Every pass reads one token of each row that goes on and the whole prompts of those that come in.
A prompt that several rows share is read once and copied. It knows the Llama-shaped families, whose
forward pass it has of its own (`decoder.py`); all others are `generate`'s.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.errors import ModelError
from tutelage.models import CausalLM, has_lora
from tutelage.rollouts.engines.completion import (
    Completion,
    end_ids,
    refuse_bad_prompts,
    refuse_broken,
    uniforms_for,
)
from tutelage.rollouts.engines.decoder import Decoder, Pass, Weights, compute_dtype
from tutelage.rollouts.engines.matrices import TOKENS_THAT_PAY
from tutelage.rollouts.engines.sampling import Sampling
from tutelage.rollouts.engines.two_level import draw_by_blocks

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Those whose layers are: norm, attention with rotary places, norm, gated MLP."""
ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary angles that follow from the place alone. Others look at how long the text has become."""
MOST_PROMPT_TOKENS = 4096
"""Prompt tokens one pass reads, but for a single longer prompt: what it needs stays in bounds."""


def refusal(lm: CausalLM, *, num_tokens: int, dtype: torch.dtype | None = None) -> str | None:
    """Why the slots cannot run this model, or None where they can.

    Args:
        num_tokens: the longest prompt with its completion.
        dtype: what the model computes in; None: what it would now.
    """
    settings = lm.config.to_dict()
    family = lm.config.model_type
    if family not in FAMILIES:
        return f"the model's family is {family}"
    rotary = (settings.get("rope_parameters") or {}).get("rope_type", "default")
    if rotary not in ROTARY:
        return f"the model's rotary angles are {rotary}"
    window = settings.get("sliding_window")
    slides = "sliding_attention" in (settings.get("layer_types") or ["sliding_attention"])
    if window is not None and slides and num_tokens > window:
        return f"the model's attention reaches back {window} tokens of {num_tokens}"
    half = (compute_dtype(lm) if dtype is None else dtype) in (torch.bfloat16, torch.float16)
    if half and has_lora(lm):
        return "merged into half precision weights, the adapter's small steps would be lost"
    return None


def write_in_slots(
    lm: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    num_real: int | None = None,
    limits: Sequence[int] | None = None,
) -> list[Completion]:
    """What `generate` gives, up to the rounding of the model, in less time.

    `sampling.batch_rows` is the number of slots. The weights are read as they are now, in the
    dtype autocast asks for; any adapter is merged for this call. The model's mode does not matter
    and is left alone.

    Args:
        limits: each row is cut at this many tokens, if that is less than the sampling's limit.

    Raises:
        DataError: a prompt is empty, or leaves no room for a completion.
        ModelError: the slots do not know this model: see `refusal`.
        NumericsError: the model's scores are not finite.
    """
    refuse_bad_prompts(lm, prompts, sampling)
    if not prompts:
        return []
    most = sampling.max_completion_tokens
    room = max(len(prompt) for prompt in prompts) + most
    reason = refusal(lm, num_tokens=room)
    if reason is not None:
        raise ModelError(
            f"The slots cannot write here, for {reason}; the engine must be hf or auto. "
            "Set rollouts.engine to auto."
        )
    dtype = compute_dtype(lm)
    uniforms = uniforms_for(len(prompts), most, generator)
    rows = [
        _Row(number, tuple(prompt), most if limits is None else min(most, limits[number]))
        for number, prompt in enumerate(prompts)
    ]
    with torch.inference_mode(), torch.autocast(lm.device.type, enabled=False):
        slots = _Slots(rows, min(len(rows), sampling.batch_rows), end_ids(lm))
        decoder = Decoder(
            Weights(lm, dtype=dtype, num_real=num_real, packed=most >= TOKENS_THAT_PAY),
            num_slots=slots.num_slots,
            room=room,
        )
        for given, asked in slots.passes():
            drawn = _drawn(decoder(given), asked, uniforms, sampling)
            for row, token, logp in zip(asked, *drawn, strict=True):
                row.say(token, logp)
    return [row.completion(slots.ends) for row in rows]


@final
@dataclass
class _Row:
    number: int
    prompt: tuple[int, ...]
    limit: int
    ids: list[int] = field(default_factory=list[int])
    logp: list[float] = field(default_factory=list[float])

    def say(self, token: int, logp: float) -> None:
        self.ids.append(token)
        self.logp.append(logp)

    def completion(self, ends: frozenset[int]) -> Completion:
        return Completion(
            ids=tuple(self.ids), truncated=self.ids[-1] not in ends, logp=tuple(self.logp)
        )


@final
class _Slots:
    """Which row is in which slot, and what each pass must read."""

    def __init__(self, rows: Sequence[_Row], num_slots: int, ends: Sequence[int]) -> None:
        self.num_slots = num_slots
        self.ends = frozenset(ends)
        # Long prompts first, as `generate` has them; equal ones side by side, to be read once.
        self._waiting = deque(sorted(rows, key=lambda r: (-len(r.prompt), r.prompt, r.number)))
        self._rows: list[_Row | None] = [None] * num_slots
        self._holds: list[tuple[int, ...] | None] = [None] * num_slots
        """The prompt at the beginning of each slot; it stays when its row has ended."""

    def passes(self) -> Iterator[tuple[Pass, list[_Row]]]:
        """Each pass with the rows that its scores are for; they must be answered before the next.

        Those that come in behind a prompt which is there already go over its last token again.
        """
        while True:
            for slot, row in enumerate(self._rows):
                if row is not None and self._has_ended(row):
                    self._rows[slot] = None
            going_on = {slot: row for slot, row in enumerate(self._rows) if row is not None}
            tokens = [
                (slot, len(row.prompt) + len(row.ids) - 1, row.ids[-1])
                for slot, row in going_on.items()
            ]
            prompts, copies, again = self._admit()
            tokens += [
                (slot, len(self._prompt(slot)) - 1, self._prompt(slot)[-1]) for slot in again
            ]
            slots = [*prompts, *going_on, *again]
            if not slots:
                return
            given = Pass(
                prompts=[(slot, self._prompt(slot)) for slot in prompts],
                copies=copies,
                tokens=tokens,
            )
            yield given, [row for slot in slots if (row := self._rows[slot]) is not None]

    def _has_ended(self, row: _Row) -> bool:
        return len(row.ids) >= row.limit or row.ids[-1] in self.ends

    def _prompt(self, slot: int) -> tuple[int, ...]:
        held = self._holds[slot]
        assert held is not None  # noqa: S101  every row brings its prompt
        return held

    def _admit(self) -> tuple[list[int], list[tuple[int, int, int]], list[int]]:
        """Slots that read their prompt, copies to make, and slots that have it by then."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        prompts: list[int] = []
        copies: list[tuple[int, int, int]] = []
        again: list[int] = []
        num_tokens = 0
        while free and self._waiting:
            prompt = self._waiting[0].prompt
            source = self._holder(prompt, free)
            if source is None:
                num_tokens += len(prompt)
                if prompts and num_tokens > MOST_PROMPT_TOKENS:
                    break
            # A slot that holds the prompt is used again before it can be overwritten.
            slot = source if source in free else free[0]
            free.remove(slot)
            self._rows[slot], self._holds[slot] = self._waiting.popleft(), prompt
            (prompts if source is None else again).append(slot)
            if source not in (None, slot) and len(prompt) > 1:
                copies.append((source, slot, len(prompt) - 1))
        return prompts, copies, again

    def _holder(self, prompt: tuple[int, ...], free: Sequence[int]) -> int | None:
        holders = [slot for slot, held in enumerate(self._holds) if held == prompt]
        return next((slot for slot in holders if slot in free), holders[0] if holders else None)


def _drawn(
    scores: Float[Tensor, "B V"],
    rows: Sequence[_Row],
    uniforms: Float[Tensor, "R T"],
    sampling: Sampling,
) -> tuple[list[int], list[float]]:
    numbers, places = [row.number for row in rows], [len(row.ids) for row in rows]
    own = uniforms[numbers, places].to(scores.device)
    drawn, logp = draw_by_blocks(scores, own, sampling)
    tokens: list[int] = drawn.tolist()
    refuse_broken(tokens, numbers, places)
    return tokens, logp.tolist()
