"""Stream a teacher over the rows of a recipe, into a folder that later runs answer from."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from tutelage.core.errors import ConfigError, DataError, OutputError
from tutelage.core.records import Rollout
from tutelage.core.targets import Head, HiddenTarget
from tutelage.models import LoadedModel
from tutelage.objectives import Answer, Divergence, Objective, WeightedSum
from tutelage.recipes.caching.check import refuse_recipe
from tutelage.recipes.caching.serve import Language, template_of
from tutelage.recipes.config import Recipe, alone
from tutelage.recipes.narrator import Narrator, Silence
from tutelage.recipes.pair import check_vocabularies, crosses, load_teacher, student_tokenizer
from tutelage.recipes.rows import Rows, prepare_rows
from tutelage.teachers import LiveTeacher
from tutelage.teachers.cache import (
    MANIFEST,
    PARTS,
    WORDS,
    AnswerSettings,
    CacheFolder,
    Identity,
    Part,
    Row,
    StoredDtype,
    answers_of,
    code_version,
    load_identity,
    locked,
    save_head,
    stored,
    stored_dtype,
    weights_hash,
    writer_of,
)
from tutelage.text import collate, cut, key_of, tokenizer_hash

_SHARD_BYTES = 32 * 2**20
_OURS = {MANIFEST, "head.safetensors", ".lock", WORDS, *PARTS}


@final
@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What to keep of each answer, and how to go about it."""

    answer: Answer = "hidden"
    num_entries: int = 32
    num_samples: int = 50
    proposal_temperature: float = 1.0
    seed: int = 0
    dtype: StoredDtype | Literal["auto"] = "auto"
    """`auto` stores hidden states as the teacher makes them, and log-probabilities in float16."""
    batch_tokens: int = 0
    """Rows read side by side, up to so many tokens; 0 reads each by itself, so that its numbers
    are a function of the row alone and equal a live teacher's bit for bit."""
    tokens_per_shard: int | None = None
    """None: about 32 MB a shard."""


@final
@dataclass(frozen=True, kw_only=True)
class PartMade:
    """What became of the rows of one part."""

    part: Part
    num_rows: int
    num_new_rows: int
    num_tokens: int
    num_bytes: int
    new_tokens: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """On disk, keys and checksums included."""
        return self.num_bytes / max(self.num_tokens, 1)


@final
@dataclass(frozen=True, kw_only=True)
class CacheMade:
    """A finished cache."""

    folder: Path
    identity: Identity
    parts: tuple[PartMade, ...]
    head_bytes: int
    repaired: tuple[str, ...]
    """What was found damaged or half done and has been written anew, in sentences."""


def make_cache(
    recipe: Recipe, folder: Path, plan: CachePlan, *, narrator: Narrator | None = None
) -> CacheMade:
    """Cache a recipe's teacher for its rows; the same call again goes on where it stopped.

    Rows that are held out are kept as hidden states whatever the answers are, so that a student
    is always measured exactly.

    Raises:
        TutelageError: the recipe has nothing to cache, the folder is another's, or a model or row
            cannot be used.
    """
    narrator = narrator or Silence()
    refuse_recipe(recipe, _wanted(recipe, plan))
    with narrator.stage("Reading the rows"):
        tokenizer = student_tokenizer(recipe)
        if crosses(recipe, tokenizer):
            raise ConfigError(
                "The teacher has another tokenizer than the student, and answers are kept by the "
                "student's tokens; it must have the same to be cached. Use it live."
            )
        language = Language(tokenizer=tokenizer, num_real=check_vocabularies(recipe, tokenizer))
        rows = prepare_rows(recipe, tokenizer)
    return fill_cache(recipe, rows, language, folder, plan, narrator=narrator)


def fill_cache(
    recipe: Recipe,
    rows: Rows,
    language: Language,
    folder: Path,
    plan: CachePlan,
    *,
    narrator: Narrator,
) -> CacheMade:
    """`make_cache` for rows that are read already, by a recipe that is not refused.

    The teacher is loaded here, and nothing holds it afterwards.

    Raises:
        TutelageError: the folder is another's, or the teacher cannot be loaded.
    """
    wanted = _wanted(recipe, plan)
    with locked(folder):
        _refuse_foreign(folder)
        with narrator.stage("Loading the teacher"):
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            model = load_teacher(recipe, device)
        if plan.dtype == "auto" and wanted.answer == "hidden":
            wanted = wanted.model_copy(update={"dtype": stored_dtype(model.lm.dtype)})
        identity = _settle(folder, recipe, wanted, language, model)
        teacher = LiveTeacher(model.lm, num_real=language.num_real)
        made: list[PartMade] = []
        repaired: list[str] = []
        for part, some in zip(PARTS, (rows.training, rows.held_out), strict=True):
            answers = answers_of(identity, part)
            work = _Work(
                teacher=teacher,
                answers=answers,
                head=None if answers.answer == "hidden" else _in_float32(model.lm.head),
                plan=plan,
                narrator=narrator,
            )
            made.append(work.write(folder, part, some, repaired))
    head = (folder / "head.safetensors").stat().st_size
    return CacheMade(
        folder=folder,
        identity=identity,
        parts=tuple(made),
        head_bytes=head,
        repaired=tuple(repaired),
    )


def _wanted(recipe: Recipe, plan: CachePlan) -> AnswerSettings:
    """The form of the answers; `dtype: auto` is settled once the teacher is there."""
    partly = plan.answer != "hidden"
    return AnswerSettings(
        answer=plan.answer,
        num_entries=plan.num_entries,
        num_samples=plan.num_samples,
        proposal_temperature=plan.proposal_temperature,
        seed=plan.seed,
        temperature=_temperature(recipe) if partly else 1.0,
        dtype="float16" if plan.dtype == "auto" else plan.dtype,
    )


def _temperature(recipe: Recipe) -> float:
    """The one temperature that all objectives of a recipe and its baselines ask the teacher at."""
    found = {t for one in alone(recipe) for t in _temperatures(one.objective)}
    if len(found) > 1:
        listed = ", ".join(f"{t:g}" for t in sorted(found))
        raise ConfigError(
            f"objective.temperature is {listed} in this recipe and its baselines; it must be one "
            "number where the answers are part of the vocabulary. Cache hidden states, or make a "
            "cache for each."
        )
    return found.pop() if found else 1.0


def _temperatures(objective: Objective) -> Iterator[float]:
    if isinstance(objective, WeightedSum):
        for part in objective.parts:
            yield from _temperatures(part.objective)
    elif objective.needs_teacher:
        yield objective.temperature if isinstance(objective, Divergence) else 1.0


def _refuse_foreign(folder: Path) -> None:
    strange = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in _OURS and not path.name.startswith(".")
    )
    if strange:
        raise OutputError(
            f"{folder} holds {strange[0]}, which no cache of ours wrote; it must be a new folder, "
            "or one to go on with. Choose another folder."
        )


def _settle(
    folder: Path, recipe: Recipe, wanted: AnswerSettings, language: Language, model: LoadedModel
) -> Identity:
    """The manifest: written where there is none, held against this work where there is one."""
    assert recipe.teacher is not None  # noqa: S101  refuse_recipe has looked
    held_in = stored_dtype(model.lm.dtype)
    num_real = language.num_real or model.lm.head.weight.shape[0]
    known = load_identity(folder) if (folder / MANIFEST).is_file() else None
    try:
        shape = None if known is None else CacheFolder(folder).head() and known.head
    except DataError:
        shape = None
    identity = Identity(
        code_version=code_version(),
        teacher=recipe.teacher.model_dump(
            mode="json", exclude={"trust_remote_code", "remember_megabytes"}
        ),
        held_in=held_in,
        weights=weights_hash(model.lm.model),
        tokenizer=tokenizer_hash(language.tokenizer, num_words=num_real),
        template=template_of(recipe, language.tokenizer),
        num_real=num_real,
        answers=wanted,
        head=shape or save_head(folder, model.lm.head),
    )
    if known is not None:
        differences = identity.differences(known)
        if differences:
            raise OutputError(
                f"{folder} holds a cache of other answers: {'; '.join(differences)}, as there. "
                "Choose another folder, or restore those settings."
            )
        return known
    _save_words(folder / WORDS, model)
    identity.save(folder)
    return identity


def _save_words(folder: Path, model: LoadedModel) -> None:
    """The tokenizer and configuration, so that the weights are not needed to check a pair."""
    folder.mkdir(exist_ok=True)
    model.tokenizer.save_pretrained(folder)
    model.lm.config.save_pretrained(folder)


def _in_float32(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach().float()
    return replace(head, weight=head.weight.detach().float(), bias=bias)


@final
@dataclass(frozen=True, kw_only=True)
class _Work:
    """One part on its way to the disk."""

    teacher: LiveTeacher
    answers: AnswerSettings
    head: Head | None
    """In the precision that probabilities are made in; None where none are."""
    plan: CachePlan
    narrator: Narrator

    def write(
        self, folder: Path, part: Part, rows: Sequence[Rollout], repaired: list[str]
    ) -> PartMade:
        writer = writer_of(folder, part, tokens_per_shard=self._tokens_per_shard())
        repaired += writer.repaired
        unique = {key_of(row): row for row in reversed(rows)}
        todo = [row for key, row in reversed(unique.items()) if key not in writer]
        tokens, done, started = 0, len(unique) - len(todo), time.perf_counter()
        title = f"Caching {part.replace('_', '-')} rows"
        with self.narrator.stage(title, total=len(unique)) as advance:
            for row in self._answered(todo):
                writer.append(row)
                tokens, done = tokens + row.num_tokens, done + 1
                pace = tokens / max(time.perf_counter() - started, 1e-9)
                advance(done, f"{pace:,.0f} tokens/s")
            writer.close_shard()
        store = CacheFolder(folder).store(part)
        return PartMade(
            part=part,
            num_rows=store.num_rows,
            num_new_rows=len(todo),
            num_tokens=store.num_tokens,
            num_bytes=store.num_bytes,
            new_tokens=tokens,
            seconds=time.perf_counter() - started,
        )

    def _answered(self, rows: Sequence[Rollout]) -> Iterator[Row]:
        device = self.teacher.device
        for piece in cut(rows, max_tokens=self.plan.batch_tokens):
            batch = collate(piece, device=device)
            target = self.teacher.score(batch)
            lengths = torch.bincount(batch.row_of, minlength=len(piece)).tolist()
            for row, key, hidden in zip(
                piece, batch.keys, target.hidden.split(lengths), strict=True
            ):
                payload = stored(self._one(target, hidden), self.answers, key=key)
                yield Row(key=key, name=row.prompt.name, num_tokens=len(hidden), payload=payload)

    def _one(self, target: HiddenTarget, hidden: Tensor) -> HiddenTarget:
        head = target.head
        if self.head is not None:
            head = replace(self.head, num_real=head.num_real)
        return replace(target, hidden=hidden, head=head, labels=None)

    def _tokens_per_shard(self) -> int:
        if self.plan.tokens_per_shard is not None:
            return self.plan.tokens_per_shard
        width = self.teacher.width
        size = 4 if self.answers.dtype == "float32" else 2
        per_token = {
            "hidden": width * size,
            "top_k": self.answers.num_entries * (2 + size) + 8,
            "sampled": self.answers.num_samples,
        }[self.answers.answer]
        return max(_SHARD_BYTES // per_token, 1)
