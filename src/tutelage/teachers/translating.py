"""A teacher with another tokenizer: it reads the same text in its own tokens."""

from dataclasses import replace
from typing import final

import torch
from typing_extensions import override

from tutelage.core.crossing import SharedWords
from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.targets import HiddenTarget, OtherVocabularyTarget
from tutelage.models.causal_lm import CausalLM
from tutelage.teachers.reading import Reader
from tutelage.teachers.teacher import Teacher
from tutelage.text.translation import Translator


@final
class TranslatingTeacher(Teacher):
    """A frozen model that is asked in its own language, and answers with groups.

    The batch's teacher view must begin with the teacher's own prompts, in its own ids.

    Args:
        lm: the teacher. It is switched to evaluation mode, and its weights to no gradients.
        num_real: entries of the teacher's head that mean something.
        remember_bytes: how much memory may hold hidden states for rows that come again.
    """

    def __init__(
        self,
        lm: CausalLM,
        translator: Translator,
        words: SharedWords,
        *,
        num_real: int,
        remember_bytes: int = 0,
    ) -> None:
        self._lm = lm.eval().requires_grad_(requires_grad=False)
        self._translator = translator
        self._words = replace(
            words,
            **{
                name: getattr(words, name).to(lm.device)
                for name in ("student_ids", "teacher_ids", "student_rest", "teacher_rest")
            },
        )
        self._num_real = num_real
        self._reader = Reader(num_real=num_real, remember_bytes=remember_bytes)

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return int(self._lm.head.weight.shape[1])

    @override
    def score(self, batch: TokenBatch) -> OtherVocabularyTarget:
        found = self._translator.batch(batch)
        if found.batch is None:
            target = self._nothing(batch)
        else:
            target = self._reader.read(self._lm.eval(), found.batch)
        return OtherVocabularyTarget(
            teacher=target,
            groups=found.groups,
            words=self._words,
            coverage=found.coverage,
            labels=batch.labels,
        )

    @override
    def length(self, rollout: Rollout) -> int:
        said = self._translator.completion(rollout.completion_ids).teacher_ids
        prompt = rollout.prompt
        mine = len(prompt.student_ids) + len(rollout.completion_ids)
        return max(mine, len(prompt.teacher_ids or prompt.student_ids) + len(said))

    def _nothing(self, batch: TokenBatch) -> HiddenTarget:
        """The answer to no token at all."""
        weight = self._lm.head.weight.detach()
        head = replace(self._lm.head, weight=weight, num_real=self._num_real)
        return HiddenTarget(
            hidden=torch.zeros(0, weight.shape[1], device=weight.device, dtype=weight.dtype),
            head=head,
            labels=batch.labels[:0],
        )
