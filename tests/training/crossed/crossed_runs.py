"""Small real runs whose teacher has another tokenizer than the student."""

from functools import lru_cache
from typing import Any

from tests.tiny_models import byte_tokenizer, tiny_llama
from tests.tiny_tokenizers import byte_level, sentence_piece
from tests.training.tiny_runs import objective, settings, trainer
from tutelage.core.records import Prompt, Rollout
from tutelage.models import CausalLM
from tutelage.objectives import Bridge
from tutelage.teachers import TranslatingTeacher
from tutelage.text.translation import Side, Translator, paired_specials, shared_words
from tutelage.training import Trainer

TEXTS = (
    "the teacher reads",
    "dèjà 12 and 13, the",
    "teaching students",
    "a",
    "日本語 and\n\n12",
    "rewriting sentences, unthinkable rethinking",
    " and four",
    "if x == 3: return",
)


@lru_cache
def languages(*, by_bytes: bool = False) -> tuple[Side, Side, Translator]:
    """Of the student and the teacher, who may need a token for every byte."""
    student = Side(byte_level())
    teacher = Side(byte_tokenizer() if by_bytes else sentence_piece())
    specials = paired_specials(student, teacher, conversations=False)
    return student, teacher, Translator(student.spelling, teacher.spelling, specials)


def rows() -> list[Rollout]:
    """Of very different lengths, with prompts of other lengths on the teacher's side."""
    student, _, _ = languages()
    made: list[Rollout] = []
    for at, text in enumerate(TEXTS):
        ids = student.spelling.encode(text.encode())
        assert ids is not None
        prompt = Prompt(student_ids=(7,) * (1 + at % 3), teacher_ids=(9,) * (1 + 2 * at % 5))
        end = student.tokenizer.eos_token_id
        made.append(Rollout(prompt=prompt, completion_ids=(*ids, end)))
    return made


def teacher(*, by_bytes: bool = False) -> TranslatingTeacher:
    mine, theirs, translator = languages(by_bytes=by_bytes)
    sizes: dict[str, Any] = {"vocab_size": theirs.spelling.num_entries + 3, "hidden_size": 48}
    return TranslatingTeacher(
        CausalLM(tiny_llama(2, **sizes)),
        translator,
        shared_words(mine.spelling, theirs.spelling, translator.specials),
        num_real=theirs.spelling.num_entries,
    )


def student(kind: str = "aligned_kl") -> CausalLM:
    lm = CausalLM(tiny_llama(1, vocab_size=languages()[0].spelling.num_entries + 6))
    if kind == "dual_space":
        lm.bridge = Bridge(int(lm.head.weight.shape[1]), 48, seed=4)
    return lm


def crossed(kind: str, **fields: Any) -> Trainer:
    """A trainer of the rows in their order, with all that `fields` does not give filled in."""
    given: dict[str, Any] = {
        "data": rows(),
        "student": student(kind),
        "teacher": teacher(),
        "objective": objective(kind),
        "settings": settings(num_steps=3),
        **fields,
    }
    return trainer(**given)
