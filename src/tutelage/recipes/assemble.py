"""The only place that builds objects from settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.run_log import RunFolder
from tutelage.core.seeds import seed_for
from tutelage.evaluation import EvaluationOptions
from tutelage.models import LoadedModel
from tutelage.objectives.fused import FusedOptions
from tutelage.recipes.caching import Language, open_cache, who_teaches
from tutelage.recipes.config import (
    CachedTeacherSettings,
    Recipe,
    RemoteTeacherSettings,
    SelfTeacherSettings,
    SeveralTeacherSettings,
)
from tutelage.recipes.narrator import Narrator
from tutelage.recipes.pair import (
    check_vocabularies,
    crosses,
    load_teacher,
    student_config,
    student_tokenizer,
    teacher_config,
)
from tutelage.recipes.remote import open_remote, who_teaches_there
from tutelage.recipes.rewarded import groups_of, policy_of, routers_to_watch
from tutelage.recipes.routing import (
    RouterScribe,
    make_router_owner,
    prepare_routers,
    refuse_dense,
)
from tutelage.recipes.rows import (
    EngineCloser,
    RolloutScribe,
    Rows,
    Writers,
    engine_identity,
    make_judge,
    make_rollouts,
    make_vllm,
    prepare_rows,
    refuse_no_room,
    watched,
    with_views,
    writes,
)
from tutelage.recipes.several import NOT_WHO_TEACHES, build_several, who_teach
from tutelage.recipes.teaching import build_teacher
from tutelage.recipes.tokenizers import (
    add_bridge,
    translating_teacher,
    two_languages,
    with_teacher_prompts,
)
from tutelage.rollouts import WritingSettings
from tutelage.rollouts.engines import VllmEngine
from tutelage.students import (
    FreshStudent,
    PrunedStudent,
    UpcycledStudent,
    build_student,
    layers_by_influence,
    wants_calibration,
)
from tutelage.teachers import AverageTeacher, LiveTeacher, RemoteTeacher, SeveralTeachers, Teacher
from tutelage.text import collate, cut
from tutelage.text.collate import num_tokens
from tutelage.training import Evaluate, Hook, Ranks, Trainer
from tutelage.training.state_tree import dotted

_NUM_CALIBRATION_ROWS = 64


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run and its baselines share: the same rows, and the same teacher for all."""

    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    teacher_model: LoadedModel | None
    teacher: Teacher | None
    """None without one, and until `taught` where each student is its own."""
    ranks: Ranks
    examiner: Teacher | None = None
    """Who answers for held-out rows, where that is not the teacher itself."""
    measures_teacher: bool = True
    """False where nobody answers for them: the teacher tells too little of its vocabulary."""
    chosen_layers: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    """Layers that influence chose, by how many: baselines and seeds begin with the same ones."""
    starts: dict[str, tuple[Any, dict[str, Any]]] = field(
        default_factory=dict[str, tuple[Any, dict[str, Any]]]
    )
    """What was measured of students before their first step, by the settings they come from."""
    checked: dict[str, int | None] = field(default_factory=dict[str, int | None])
    """What `num_real` found, by the pair it was asked for."""

    def num_real(self, recipe: Recipe) -> int | None:
        """Entries of the vocabulary that are real; None where none is padding.

        Raises:
            ConfigError: the recipe's student and teacher do not speak one language.
        """
        pair = _pair_of(recipe)
        if pair not in self.checked:
            self.checked[pair] = check_vocabularies(recipe, self.tokenizer)
        return self.checked[pair]

    @property
    def measured_by(self) -> Teacher | None:
        """Who answers for held-out rows."""
        return (self.examiner or self.teacher) if self.measures_teacher else None

    @property
    def device(self) -> torch.device:
        """Where models live."""
        return self.ranks.device


def _pair_of(recipe: Recipe) -> str:
    named = recipe.model_dump(mode="json", include={"student", "teacher"})
    return json.dumps(named, sort_keys=True)


def assemble(
    recipe: Recipe, folder: Path | None, narrator: Narrator, *, answers: Path | None = None
) -> Work:
    """Read the rows, then load the teacher; the cheap and likely mistakes come first.

    Args:
        folder: of the run; None where nothing is trained, or in folders that are not known yet.
        answers: where teachers that are loaded one at a time leave theirs; None: in `folder`.
    """
    ranks = Ranks(track_with=recipe.training.track_with, folder=folder)
    with narrator.stage("Reading the rows"):
        tokenizer = student_tokenizer(recipe)
        num_real = check_vocabularies(recipe, tokenizer)
        rows = prepare_rows(recipe, tokenizer)
        both = None
        if crosses(recipe, tokenizer):
            both = two_languages(recipe, tokenizer, rows.training)
            rows = with_teacher_prompts(rows, recipe, both)
        shapes = {"student": student_config(recipe), "teacher": teacher_config(recipe)}
        refuse_dense(recipe, shapes["student"])
        refuse_no_room(recipe, rows.training, shapes)
        # Baselines may show their teachers other contexts: each adds its own to the bare rows.
        rows = replace(rows, notes=with_views(rows, recipe, tokenizer).notes)
    for note in rows.notes:
        narrator.say(f"note: {note}")
    work = Work(
        tokenizer=tokenizer,
        rows=rows,
        teacher_model=None,
        teacher=None,
        ranks=ranks,
        checked={_pair_of(recipe): num_real},
    )
    if recipe.teacher is None or isinstance(recipe.teacher, SelfTeacherSettings):
        return work
    if isinstance(recipe.teacher, CachedTeacherSettings | SeveralTeacherSettings):
        pair = Language(tokenizer=tokenizer, num_real=num_real)
        if isinstance(recipe.teacher, SeveralTeacherSettings):
            answers = answers or (folder and RunFolder(folder).answers)
            asked = build_several(
                recipe, rows, pair, ranks=ranks, narrator=narrator, answers=answers
            )
        else:
            asked = open_cache(recipe, rows, pair, device=ranks.device)
        teacher, examiner = asked
        return replace(work, teacher=teacher, examiner=examiner)
    if isinstance(recipe.teacher, RemoteTeacherSettings):
        return _with_remote(
            recipe, work, Language(tokenizer=tokenizer, num_real=num_real), narrator
        )
    with narrator.stage("Loading the teacher"):
        model = load_teacher(recipe, ranks.device)
    if both is not None:
        # It is no origin of a student and writes no rows: nobody may ask it in other ids.
        return replace(work, teacher=translating_teacher(recipe, rows, both, model.lm))
    teacher = LiveTeacher(
        model.lm,
        num_real=num_real,
        remember_bytes=recipe.teacher.remember_megabytes * 2**20,
    )
    return replace(work, teacher_model=model, teacher=teacher)


def _with_remote(recipe: Recipe, work: Work, pair: Language, narrator: Narrator) -> Work:
    with narrator.stage("Meeting the teacher's server"):
        teacher, examiner = open_remote(recipe, pair, device=work.device)
    if examiner is None and work.rows.held_out:
        note = (
            "Held-out rows are measured without the teacher, whose server tells the likeliest "
            "entries only; `tutelage eval RUN --teacher MODEL` measures them against it."
        )
        narrator.say(f"note: {note}")
        work = replace(work, rows=replace(work.rows, notes=[*work.rows.notes, note]))
    return replace(work, teacher=teacher, examiner=examiner, measures_teacher=examiner is not None)


@final
class SharedWork:
    """Keeps the last work, so that runs of one pair and one data set load and ask it once."""

    def __init__(self, narrator: Narrator) -> None:
        self.narrator = narrator
        self._kept: tuple[str, Work] | None = None

    def for_recipe(self, recipe: Recipe) -> Work:
        """The work of a recipe: the last one where all that it is made from is the same."""
        parts = recipe.model_dump(
            mode="json", include={"student", "teacher", "rollouts", "evaluation"}
        )
        key = json.dumps([parts, recipe.training.track_with], sort_keys=True)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            answers = RunFolder(Path(recipe.folder)).answers
            self._kept = (key, assemble(recipe, None, self.narrator, answers=answers))
        return self._kept[1]


def batches(rollouts: Sequence[Rollout], recipe: Recipe, work: Work) -> list[TokenBatch]:
    """Held-out rows in forwards of a bounded size."""
    length = num_tokens if work.teacher is None else work.teacher.length
    pieces = cut(rollouts, max_tokens=recipe.evaluation.max_tokens, length=length)
    return [collate(piece, device=work.device) for piece in pieces]


def evaluation_options(recipe: Recipe) -> EvaluationOptions:
    """The student is measured in the precision it trains in."""
    half = torch.bfloat16 if recipe.training.precision == "bf16" else None
    return EvaluationOptions(dtype=half, fused=FusedOptions(matmul_dtype=half))


def make_student(recipe: Recipe, work: Work) -> LoadedModel:
    """The student before its first step: the same every time for the same recipe."""
    settings, origin = recipe.student, _origin(recipe, work)
    if isinstance(settings, PrunedStudent) and settings.model is None:
        settings = _with_layers(settings, recipe, work, origin)
    student = build_student(
        settings,
        teacher=origin,
        calibration=_calibration(recipe, work) if wants_calibration(settings) else [],
        device=work.device,
        seed=seed_for(recipe.seed, "student"),
    )
    prepare_routers(recipe, student)
    add_bridge(recipe, student.lm, work.teacher)
    return student


def taught(recipe: Recipe, work: Work, student: LoadedModel) -> Work:
    """The work with this student as its own teacher and what only it reads, where so is asked."""
    if not isinstance(recipe.teacher, SelfTeacherSettings):
        return work
    teacher = build_teacher(
        recipe.teacher,
        student.lm,
        num_real=work.num_real(recipe),
        dtype=evaluation_options(recipe).dtype,
    )
    return replace(work, rows=with_views(work.rows, recipe, work.tokenizer), teacher=teacher)


def _origin(recipe: Recipe, work: Work) -> LoadedModel | None:
    """The teacher's weights, to make a student from; where it is not loaded, for that alone."""
    made_from_it = isinstance(recipe.student, FreshStudent) or (
        isinstance(recipe.student, PrunedStudent | UpcycledStudent) and recipe.student.model is None
    )
    if isinstance(recipe.teacher, CachedTeacherSettings | RemoteTeacherSettings) and made_from_it:
        return load_teacher(recipe, work.device)
    return work.teacher_model


def _with_layers(
    settings: PrunedStudent, recipe: Recipe, work: Work, origin: LoadedModel | None
) -> PrunedStudent:
    """The layers by name where influence is to choose them, which takes a forward pass once."""
    keep = settings.keep_layers
    if settings.choose != "influence" or keep is None or origin is None:
        return settings
    if keep not in work.chosen_layers:
        rows = _calibration(recipe, work)
        chosen = layers_by_influence(origin.lm, rows, keep=keep)
        work.chosen_layers[keep] = tuple(chosen)
    return settings.model_copy(update={"choose": work.chosen_layers[keep]})


def _calibration(recipe: Recipe, work: Work) -> list[TokenBatch]:
    return batches(work.rows.training[:_NUM_CALIBRATION_ROWS], recipe, work)


def make_trainer(
    recipe: Recipe,
    work: Work,
    student: LoadedModel,
    *,
    output: Path,
    evaluate: Evaluate | None,
    hooks: Sequence[Hook],
) -> Trainer:
    """Everything one optimiser step needs, from the recipe's settings."""
    teacher = None if work.teacher_model is None else work.teacher_model.lm
    vllm = make_vllm(recipe, student.lm, work.ranks)
    writers = Writers(
        student=student.lm, teacher=teacher, num_real=work.num_real(recipe), vllm=vllm
    )
    rollouts = make_rollouts(recipe, work.rows.training, writers, work.ranks)
    if writes(recipe.rollouts):
        hooks = (*hooks, RolloutScribe(RunFolder(output).rollouts, work.tokenizer))
    clocks: dict[str, AverageTeacher | VllmEngine] = {}
    if isinstance(work.teacher, AverageTeacher):
        clocks["teacher"] = work.teacher
    if vllm is not None:
        hooks, clocks["vllm"] = (*hooks, EngineCloser(vllm)), vllm
    routers = make_router_owner(recipe, student, work.rows.training, work.device)
    if routers is not None:
        path, num_steps = RunFolder(output).routers, recipe.training.num_steps
        hooks = (*hooks, RouterScribe(path, routers, num_steps=num_steps))
    sampling = recipe.rollouts.sampling if isinstance(recipe.rollouts, WritingSettings) else None
    return Trainer(
        student=student.lm,
        teacher=work.teacher,
        objective=recipe.objective,
        rollouts=rollouts,
        settings=watched(recipe),
        move=recipe.move,
        evaluate=evaluate,
        output=output,
        identity=_identity(recipe, work),
        seed=recipe.seed,
        hooks=hooks,
        judge=make_judge(recipe, work.tokenizer),
        policy=policy_of(recipe),
        groups=groups_of(recipe),
        watch_routers=None if recipe.policy is None else routers_to_watch(student.lm),
        # Greedy tokens were drawn with certainty: nothing is divided by then.
        sampled_at=(sampling.temperature if sampling else 1.0) or 1.0,
        special_ids=work.tokenizer.all_special_ids,
        clocks=clocks,
        routers=routers,
        ranks=work.ranks,
    )


def _identity(recipe: Recipe, work: Work) -> dict[str, Any]:
    """Who teaches, how experts are routed and whether vLLM writes: a run goes on with no other."""
    routing = {} if recipe.routing is None else recipe.routing.model_dump(mode="json")
    engine = engine_identity(recipe)
    return {**dotted("routing", routing), **_who_teaches(recipe, work), **engine}


def _who_teaches(recipe: Recipe, work: Work) -> dict[str, Any]:
    if recipe.teacher is None:
        return {}
    named = recipe.teacher.model_dump(mode="json", exclude=NOT_WHO_TEACHES)
    if isinstance(recipe.teacher, CachedTeacherSettings):
        named = {"rest": recipe.teacher.rest, **who_teaches(recipe.teacher)}
    if isinstance(recipe.teacher, RemoteTeacherSettings):
        assert isinstance(work.teacher, RemoteTeacher)  # noqa: S101  assemble has built it
        named = who_teaches_there(recipe.teacher, work.teacher)
    if isinstance(recipe.teacher, SeveralTeacherSettings):
        assert isinstance(work.teacher, SeveralTeachers)  # noqa: S101  assemble has built it
        named = who_teach(recipe.teacher, work.teacher)
    if work.teacher_model is not None:
        named["dtype"] = str(work.teacher_model.lm.dtype).removeprefix("torch.")
    return {f"teacher.{name}": value for name, value in named.items()}
