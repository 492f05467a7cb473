"""Rollouts that a model writes while the student trains: the student itself, or the teacher."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from typing_extensions import override

from tutelage.core.records import Prompt, Rollout, Source
from tutelage.models.causal_lm import CausalLM
from tutelage.rollouts.engines import Completion, Engine, Sampling, write
from tutelage.rollouts.placed import Order, PlacedRollouts, fingerprint_of


@final
@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a model writes."""

    sampling: Sampling = field(default_factory=Sampling)
    dtype: torch.dtype | None = None
    """Compute in it over the weights as they are, as training does; None keeps the weights' own."""
    num_real: int | None = None
    """Entries of the vocabulary from here on are padding, and never drawn."""
    completions_per_prompt: int = 1
    """Neighbouring places that complete the same prompt."""
    skip_empty: bool = False
    """Train nothing of a completion that ends where it begins; otherwise its end is trained."""
    engine: Engine = write
    """Who completes prompts; the fastest that knows the model. Of those, it changes no draw."""
    numbers: Callable[[], Mapping[str, float]] = dict[str, float]
    """What the engine has to say for the log."""


class ModelRollouts(PlacedRollouts):
    """Prompts in seeded epochs, each completed anew whenever its turn comes.

    All rows of one call are written together, so give it a whole step's rows. What is drawn at a
    place follows from the seed and the place alone, whatever is written beside it and on however
    many ranks, up to the rounding of the model itself. The model writes in evaluation mode,
    without gradients, and is left as it was.

    Args:
        prompts: those of one epoch, all of them, on every process.
    """

    def __init__(
        self, lm: CausalLM, prompts: Sequence[Prompt], writing: Writing, order: Order
    ) -> None:
        self._lm = lm
        self._prompts = tuple(prompts)
        self._writing = writing
        self._num_generated = 0
        ids = ((prompt.student_ids, prompt.teacher_ids) for prompt in self._prompts)
        super().__init__(len(self._prompts), order, fingerprint=fingerprint_of(ids))

    @property
    @abstractmethod
    def source(self) -> Source:
        """Who writes."""

    @abstractmethod
    def reads(self, prompt: Prompt) -> Sequence[int]:
        """The prompt as the one who writes sees it."""

    @property
    @override
    def num_generated(self) -> int:
        return self._num_generated

    @property
    @override
    def numbers(self) -> Mapping[str, float]:
        return self._writing.numbers()

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        # How many rows lie side by side changes no draw.
        drawn = self._writing.sampling.model_dump(mode="json", exclude={"batch_rows"})
        return {
            **drawn,
            "completions_per_prompt": self._writing.completions_per_prompt,
            "skip_empty": self._writing.skip_empty,
        }

    @property
    @override
    def epoch(self) -> float:
        return super().epoch / self._writing.completions_per_prompt

    @property
    def longest(self) -> int:
        """Tokens that the one who writes may have before it at the end of its longest row."""
        prompts = max(len(self.reads(prompt)) for prompt in self._prompts)
        return prompts + self._writing.sampling.max_completion_tokens

    def prompt_at(self, place: int) -> Prompt:
        """The prompt whose turn it is at this place."""
        return self._prompts[self.row_at(place // self._writing.completions_per_prompt)]

    @override
    def at(self, places: Sequence[int]) -> list[Rollout]:
        if not places:
            return []
        prompts = [self.prompt_at(place) for place in places]
        device = self._lm.device.type
        dtype = self._writing.dtype
        with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            said = self._writing.engine(
                self._lm,
                [self.reads(prompt) for prompt in prompts],
                self._writing.sampling,
                generator=[self.order.generator("written", place) for place in places],
                num_real=self._writing.num_real,
            )
        self._num_generated += sum(len(completion.ids) for completion in said)
        return [self._rollout(*pair) for pair in zip(prompts, said, strict=True)]

    def _rollout(self, prompt: Prompt, said: Completion) -> Rollout:
        skipped = self._writing.skip_empty and said.is_empty
        return Rollout(
            prompt=prompt,
            completion_ids=said.ids,
            trained=(False,) * len(said.ids) if skipped else None,
            source=self.source,
            truncated=said.truncated,
            sampled_logp=said.logp,
        )


@final
class StudentRollouts(ModelRollouts):
    """The student writes, with the weights it has by then: on-policy distillation.

    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649, with all data from the student.
    """

    @property
    @override
    def source(self) -> Source:
        return "student"

    @override
    def reads(self, prompt: Prompt) -> Sequence[int]:
        return prompt.student_ids


@final
class TeacherRollouts(ModelRollouts):
    """The teacher writes, behind its own prompt where it has one.

    Source: Kim and Rush 2016, sequence-level knowledge distillation, arXiv:1606.07947; here
    sampled afresh every epoch.
    """

    @property
    @override
    def source(self) -> Source:
        return "teacher"

    @override
    def reads(self, prompt: Prompt) -> Sequence[int]:
        return prompt.student_ids if prompt.teacher_ids is None else prompt.teacher_ids
