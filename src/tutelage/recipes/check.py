"""What contradicts itself in a recipe, found before a weight is loaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tutelage.core.errors import CheckpointError, ConfigError, OutputError
from tutelage.core.run_log import RunFolder
from tutelage.objectives import MoveSettings, NoMove, Objective, ObjectiveSettings, Taid
from tutelage.objectives.moved_targets import taid
from tutelage.objectives.union import WeightedSum
from tutelage.recipes.caching import contradictions_with_cache
from tutelage.recipes.config import Recipe, baseline
from tutelage.recipes.remote import contradictions_with_remote
from tutelage.recipes.rewarded import contradictions_of_rewards
from tutelage.recipes.routing.check import contradictions_of_routing
from tutelage.recipes.rows import contradictions_of_engine, needs_completions, writes
from tutelage.recipes.several import contradictions_among
from tutelage.recipes.teaching import SelfTeacherSettings, contradictions_of
from tutelage.rollouts import (
    DatasetRolloutSettings,
    ReplayRolloutSettings,
    RowSettings,
    StudentRolloutSettings,
)
from tutelage.students import FreshStudent, PrunedStudent, UpcycledStudent

_NUM_TRIED = 5
_NUM_ENTRIES = 7
_ROUNDING = 1e-9
_SAMPLING = frozenset({"sampled_token"})
"""Objectives whose estimate is over the tokens that the student drew."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose settings contradict each other, its baselines included.

    Raises:
        ConfigError: a line for each contradiction.
    """
    lines = list(contradictions(recipe))
    if lines:
        raise ConfigError("\n".join(lines))


def contradictions(recipe: Recipe) -> Iterator[str]:
    """One line each: the dotted path, what it is, what it must be, what to do."""
    yield from _of_one(recipe)
    for name in recipe.baselines:
        other = baseline(recipe, name)
        for line in (*_of_one(other), *_of_shared_rows(recipe, other)):
            yield f"baselines.{name}.{line}"


def _of_one(recipe: Recipe) -> Iterator[str]:
    yield from _of_self_teacher(recipe)
    yield from contradictions_with_cache(recipe)
    yield from contradictions_with_remote(recipe)
    yield from contradictions_among(recipe)
    yield from _of_teacher(recipe)
    yield from _of_writing(recipe)
    yield from contradictions_of_engine(recipe)
    yield from contradictions_of_rewards(recipe)
    yield from _of_weighting(recipe)
    yield from _of_move(recipe.objective, recipe.move)
    yield from contradictions_of_routing(recipe)
    yield from _of_evaluation(recipe)
    yield from _of_hardware(recipe)


def _of_self_teacher(recipe: Recipe) -> Iterator[str]:
    if not isinstance(recipe.teacher, SelfTeacherSettings):
        return
    yield from contradictions_of(recipe.teacher, recipe.student)
    if recipe.rollouts.trained_turns == "all":
        yield (
            "rollouts.trained_turns is all, and teacher.kind is self, whose context is for one "
            "question; it must be last. Remove it, or choose another teacher."
        )
    if "teacher" in writes(recipe.rollouts):
        yield (
            f"rollouts.kind is {recipe.rollouts.kind} and the teacher is to write, but "
            "teacher.kind is self, which only reads; the student must write. Set rollouts.kind: "
            "student, or choose another teacher."
        )


def _of_teacher(recipe: Recipe) -> Iterator[str]:
    kind, made_from = recipe.objective.kind, _made_from(recipe)
    if recipe.teacher is not None:
        origin = None if recipe.teacher.kind == "self" else made_from
        unused = not recipe.objective.needs_teacher and origin is None
        if unused and recipe.evaluation.num_rows == 0 and recipe.evaluation.data is None:
            yield (
                f"teacher is given, but {kind} does not ask it and evaluation.num_rows is 0; "
                "it must have something to do. Leave the teacher out, or hold out rows."
            )
        return
    if recipe.objective.needs_teacher:
        yield (
            f"teacher is missing, and {kind} learns from one; it must be given. "
            "Name a model in teacher.model, or use objective.kind: cross_entropy."
        )
    if recipe.rollouts.teacher_template is not None:
        yield (
            "rollouts.teacher_template is given, and there is no teacher to read its prompt; it "
            "must be null. Add a teacher, or leave the template out."
        )
    if not isinstance(recipe.move, NoMove):
        yield (
            f"move.kind is {recipe.move.kind}, and there is no teacher to move towards; "
            "it must be none. Add a teacher, or leave the move out."
        )
    if made_from is not None:
        yield (
            f"student.kind is {recipe.student.kind} and there is no teacher to make it from; "
            f"student.{made_from} must name a model then. Name it, or add a teacher."
        )


def _of_writing(recipe: Recipe) -> Iterator[str]:
    """Of completions that models write while the run goes on."""
    settings, who = recipe.rollouts, writes(recipe.rollouts)
    if "teacher" in who and recipe.teacher is None:
        yield (
            f"rollouts.kind is {settings.kind} and the teacher is to write, but teacher is "
            "missing; it must be given. Name a model in teacher.model, or let the student write."
        )
    if who and recipe.training.tokens_per_step is not None:
        yield (
            f"training.tokens_per_step is {recipe.training.tokens_per_step}, and how many tokens "
            "a model writes is known only afterwards; it must be null, so that a step's rows are "
            "written together. Give training.rows_per_step."
        )
    if settings.trained_turns == "all" and not isinstance(settings, DatasetRolloutSettings):
        yield (
            f"rollouts.trained_turns is all, and a model writes only the last turn; it must be "
            f"last where rollouts.kind is {settings.kind}. Leave it out."
        )
    own_words = isinstance(settings, StudentRolloutSettings | ReplayRolloutSettings)
    own_labels = recipe.objective.kind == "cross_entropy" and not recipe.objective.needs_teacher
    if own_words and own_labels:
        yield (
            f"rollouts.kind is {settings.kind} with cross_entropy on the completions' own "
            "tokens; it must be an objective with a teacher. The student would learn what it "
            "says already: the gradient is noise around 0. Change objective.kind, or let the "
            "teacher write."
        )


def _of_weighting(recipe: Recipe) -> Iterator[str]:
    weighting, settings = recipe.training.weighting, recipe.rollouts
    if weighting.return_discount and recipe.objective.kind != "sampled_token":
        yield (
            f"training.weighting.return_discount is {weighting.return_discount}, and "
            f"objective.kind is {recipe.objective.kind}; only sampled_token has returns. Leave it "
            "out, or change objective.kind."
        )
    if weighting.importance is None:
        return
    if not isinstance(settings, StudentRolloutSettings | ReplayRolloutSettings):
        yield (
            f"training.weighting.importance is given with rollouts.kind {settings.kind}, where not "
            "every row was drawn by the student; it must be null. Leave it out, or use replay."
        )
    elif settings.top_p < 1 or settings.top_k is not None or settings.temperature == 0:
        yield (
            "training.weighting.importance is given, and tokens are drawn greedily or with top_p "
            "or top_k, which the student's own probabilities do not have; it must be null. Leave "
            "one of them out."
        )


def _of_shared_rows(recipe: Recipe, other: Recipe) -> Iterator[str]:
    """A baseline is given the rows that were read for the recipe."""
    # A limit on what a model writes is its own; one on the data's completions is the rows'.
    own = {"shuffle"} | (set() if needs_completions(other.rollouts) else {"max_completion_tokens"})
    for name in sorted(RowSettings.model_fields.keys() - own):
        ours, theirs = getattr(recipe.rollouts, name), getattr(other.rollouts, name)
        if ours != theirs:
            yield (
                f"rollouts.{name} is {theirs!r}; it must be {ours!r}, as in the recipe, whose rows "
                "its baselines share. Leave it out, or compare two recipes."
            )


def _made_from(recipe: Recipe) -> str | None:
    """The setting that is null where the student is made from the teacher; None elsewhere."""
    match recipe.student:
        case PrunedStudent(model=None) | UpcycledStudent(model=None):
            return "model"
        case FreshStudent():
            return "like"
        case _:
            return None


def _of_move(objective: ObjectiveSettings, move: MoveSettings) -> Iterator[str]:
    if isinstance(move, NoMove):
        return
    if not objective.needs_teacher:
        yield (
            f"move.kind is {move.kind}, but {objective.kind} reads no target that could move; "
            "it must be none. Leave the move out, or choose an objective with a teacher."
        )
        return
    if isinstance(move, Taid):
        yield from _of_taid(move)
    if isinstance(move, Taid) and _samples(objective):
        yield (
            f"move.kind is taid with {_described(objective)}, which asks only about the token that "
            "the current student drew; it must be an objective over the whole vocabulary, such as "
            "forward_kl. Here the advantage would only be t times the unmoved one and a constant: "
            "a learning-rate ramp. Change objective.kind, or leave the move out and use "
            "training.warmup_steps."
        )
    elif isinstance(move, Taid) and only_a_ramp(objective):
        yield (
            f"move.kind is taid with {_described(objective)}; it must be an objective such as "
            "forward_kl. On a target mixed from the student itself the gradient of this one is "
            "t times the unmoved one: a learning-rate ramp and nothing else. Change "
            "objective.kind, or leave the move out and use training.warmup_steps."
        )


def _samples(objective: ObjectiveSettings) -> bool:
    """Whether the objective learns from the completions' own tokens, weighed by the teacher.

    Source: the remark on the current student as reference in taid.md, section 2.3, property 7.
    """
    if isinstance(objective, WeightedSum):
        return any(_samples(part.objective) for part in objective.parts)
    return objective.kind in _SAMPLING


def _of_taid(move: Taid) -> Iterator[str]:
    """Settings of a schedule that was not chosen, changed all the same."""
    used = {
        "linear": {"t_end"},
        "adaptive": {"t_end", "alpha", "momentum"} | ({"rate"} if move.alpha == "auto" else set()),
        "exponential": {"t_end", "rate"},
        "constant": set[str](),
    }[move.schedule]
    for name in ("t_end", "alpha", "momentum", "rate"):
        # Compared with the default: a recipe that was written out in full has them all.
        if name not in used and getattr(move, name) != Taid.model_fields[name].default:
            yield (
                f"move.{name} is {getattr(move, name)}, which the {move.schedule} schedule does "
                "not read; it must be left out. Change move.schedule, or remove it."
            )


def _described(objective: ObjectiveSettings) -> str:
    given = objective.model_dump(mode="json", exclude_defaults=True)
    settings = ", ".join(f"{name} {value}" for name, value in given.items())
    return f"{objective.kind} ({settings})" if settings else objective.kind


def only_a_ramp(objective: Objective, *, at: float = 0.3) -> bool:
    """Would TAID only scale this objective's gradient by a number, whatever the position?

    True of reverse KL, and of squared differences of scores whose weights do not look at the
    target: the way to the moved target is t times the way to the teacher. Found out by trying, so
    that it holds for every objective and every setting of it.

    Source: the remark on reverse KL in taid.md, section 2.3, property 7.
    """
    if isinstance(objective, WeightedSum):
        asked = [part.objective for part in objective.parts if part.objective.needs_teacher]
        return all(only_a_ramp(one, at=at) for one in asked)
    objective = objective.on_average()
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_TRIED, _NUM_ENTRIES)
    student, teacher = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    labels = torch.zeros(_NUM_TRIED, dtype=torch.long)

    def gradient(t: float) -> torch.Tensor:
        scores = student.clone().requires_grad_()
        values = objective.from_logits(scores, taid(student, teacher, t), labels)
        return torch.autograd.grad(values.sum(), scores)[0]

    part, whole = gradient(at), gradient(1.0)
    ratio = (part * whole).sum() / whole.square().sum()
    return bool((part - ratio * whole).norm() < _ROUNDING * part.norm())


def _of_evaluation(recipe: Recipe) -> Iterator[str]:
    evaluation = recipe.evaluation
    if evaluation.num_rows == 0 and evaluation.data is not None:
        yield (
            "evaluation.data is given and evaluation.num_rows is 0; it must be 1 or more to read "
            "that data. Raise it, or leave evaluation.data out."
        )
    if evaluation.num_rows == 0 and recipe.training.evaluate_every is not None:
        yield (
            f"training.evaluate_every is {recipe.training.evaluate_every} and evaluation.num_rows "
            "is 0; it must be null where no rows are held out. Raise evaluation.num_rows."
        )
    limit = recipe.rollouts.num_rows
    if limit is not None and evaluation.data is None and evaluation.num_rows >= limit:
        yield (
            f"evaluation.num_rows is {evaluation.num_rows}; it must be less than "
            f"rollouts.num_rows ({limit}), or nothing is left to train on. Lower it."
        )


def _of_hardware(recipe: Recipe) -> Iterator[str]:
    if recipe.training.precision != "bf16" or not torch.cuda.is_available():
        return
    if not torch.cuda.is_bf16_supported():
        yield (
            "training.precision is bf16, which this GPU does not compute in; it must be fp32. "
            "Change it, or use a newer GPU."
        )


def check_output(recipe: Recipe, *, resume: bool, overwrite: bool) -> RunFolder:
    """The run's folder, proved to be writable and free for what is about to happen.

    Raises:
        OutputError: it cannot be written, or holds another run and nobody said what to do.
        CheckpointError: there is nothing in it to go on with.
        ConfigError: both resume and overwrite were asked for.
    """
    folder = RunFolder(Path(recipe.folder))
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one of them.")
    taken = any(path.exists() for path in _signs(folder))
    # A run may have ended before its first step, while its teachers' answers were kept.
    begun = taken or folder.answers.is_dir()
    if resume and not begun:
        raise CheckpointError(
            f"{folder.root} holds no run to go on with; it must be the folder of an earlier run. "
            "Check output and name, or leave out --resume."
        )
    if taken and not resume and not overwrite:
        raise OutputError(
            f"output is {folder.root}, which already holds a run; it must be a new folder. "
            "Go on with --resume, replace it with --overwrite, or give another output=FOLDER."
        )
    foreign = not begun and folder.root.is_dir() and any(folder.root.iterdir())
    if foreign and overwrite:
        raise OutputError(
            f"output is {folder.root}, which holds files that no run of ours wrote; it must be a "
            "folder of a run to be overwritten. Choose another output."
        )
    folder.create()
    return folder


def _signs(folder: RunFolder) -> Sequence[Path]:
    return folder.recipe, folder.metrics, folder.summary, folder.checkpoints
