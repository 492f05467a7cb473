"""The tree of settings that is a recipe: student, teacher, rows, objective, move, training.

Read by `load` from a preset or a YAML file with dotted overrides; written beside every run.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, cast, final

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from tutelage.core.errors import ConfigError
from tutelage.core.settings import Settings
from tutelage.objectives import MoveSettings, ObjectiveSettings, from_settings
from tutelage.objectives.moved_targets import NoMove
from tutelage.objectives.policies import PolicySettings
from tutelage.recipes.teaching.settings import CachedTeacherSettings, SelfTeacherSettings
from tutelage.recipes.tree import Plain, complaints, kinds_of, merged, models_in, read_recipe
from tutelage.rewards import AdvantageSettings, RewardSettings
from tutelage.rollouts import RolloutSettings, RowSettings
from tutelage.students import StudentSettings
from tutelage.teachers.remote.settings import RemoteTeacherSettings
from tutelage.teachers.routed import ClassifierRouter, LikelihoodRouter
from tutelage.training import RoutingSettings, TrainingSettings

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


@final
class LiveTeacherSettings(Settings):
    """A model that answers while the student trains."""

    kind: Literal["live"] = "live"
    model: str
    """A name on the hub, a folder, a `*.gguf` file, or `package:NAME` for a GGUF file that an
    installed Python package carries."""
    dtype: Dtype = "auto"
    """What the weights are held in; `auto` keeps what the model was saved in."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is its default branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""
    remember_megabytes: NonNegativeInt = 1024
    """How much memory may hold answers already given, so that later epochs cost no forward."""
    special_tokens: Mapping[str, str] | None = None
    """Where the tokenizers differ: the student's special token by name to the teacher's that does
    the same. Null pairs ends of turns, ends of texts and equal names."""


@final
class ToyTeacherSettings(Settings):
    """A tiny random model over bytes, made on the spot: nothing is downloaded or read."""

    kind: Literal["toy"] = "toy"
    num_layers: PositiveInt = 4
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Size of the hidden states."""
    sharpness: Annotated[float, Field(gt=0)] = 3.0
    """Standard deviation of the logits, about; larger makes a more certain teacher."""
    seed: int = 0
    remember_megabytes: NonNegativeInt = 64
    """As for a live teacher."""


@final
class SeveralTeacherSettings(Settings):
    """Several teachers at once: one for each row, or all of them blended by their weights."""

    kind: Literal["several"] = "several"
    by: Literal["row", "mixture", "product", "router"] = "mixture"
    """`row`: a column names each row's teacher. `mixture`: their probabilities, weighed and added
    up. `product`: in proportion to their probabilities, each to the power of its weight.
    `router`: a mixture whose weights `router` decides for each row."""
    teachers: Annotated[
        Mapping[
            str,
            Annotated[
                LiveTeacherSettings
                | ToyTeacherSettings
                | CachedTeacherSettings
                | RemoteTeacherSettings,
                Field(discriminator="kind"),
            ],
        ],
        Field(min_length=1),
    ]
    """Name to teacher: live, cached as hidden states, or on a server that answers with them."""
    weights: Mapping[str, Annotated[float, Field(gt=0)]] | None = None
    """Name to what that teacher counts; brought to a sum of 1. Null: all alike."""
    column: str = "teacher"
    """By row: where the name of the row's teacher stands."""
    router: Annotated[LikelihoodRouter | ClassifierRouter, Field(discriminator="kind")] | None = (
        None
    )
    """By router: {kind: likelihood} asks the teachers themselves, {kind: classifier, model: ...}
    a classifier of yours."""
    sequential: bool = False
    """For live teachers that do not fit together: before the first step each is loaded alone, its
    hidden states for all rows are kept in the run's folder, under `answers`, and it is dropped."""


TeacherSettings = Annotated[
    LiveTeacherSettings
    | ToyTeacherSettings
    | SelfTeacherSettings
    | CachedTeacherSettings
    | RemoteTeacherSettings
    | SeveralTeacherSettings,
    Field(discriminator="kind"),
]


@final
class EvaluationSettings(Settings):
    """What is measured on rows the student never trains on."""

    num_rows: NonNegativeInt = 60
    """Rows held out from the end of the data; 0 measures nothing."""
    data: str | None = None
    """A file or dataset of its own to hold out, in place of the end of the training data."""
    max_tokens: PositiveInt = 4096
    """Tokens measured in one forward: bounds memory, changes no number."""
    num_samples: NonNegativeInt = 4
    """Held-out prompts that student and teacher answer for the report."""
    max_sample_tokens: PositiveInt = 64
    """Longest answer among them."""
    written_rows: NonNegativeInt = 0
    """Held-out prompts that the student completes, greedily, at every evaluation: judged by
    `reward` where there is one, and compared with the teacher."""
    num_token_rows: NonNegativeInt = 8
    """Held-out rows shown token by token in the report."""


@final
class ReportSettings(Settings):
    """The page at the end of a run."""

    enabled: bool = True
    """Write report.html and plots."""


@final
class Recipe(Settings):
    """A whole run: who learns what from whom, on which rows, for how long."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.\- ]+$")] = "run"
    """Letters, digits, dots, dashes and spaces; names the output folder."""
    description: str = ""
    """One line for `tutelage list` and the report."""
    student: StudentSettings
    teacher: TeacherSettings | None = None
    """Null trains on the data's own labels, and measures no divergence."""
    rollouts: RolloutSettings
    objective: ObjectiveSettings
    move: MoveSettings = NoMove()
    """How the target moves on its way to the teacher, such as {kind: taid}."""
    reward: RewardSettings | None = None
    """What a completion is worth, such as {kind: exact_answer}: for `policy_gradient`, a `policy`,
    the log and `evaluation.written_rows`. Null judges nothing."""
    advantages: AdvantageSettings = AdvantageSettings()
    """How the rewards of one prompt's completions are compared."""
    policy: PolicySettings | None = None
    """How rewards are learned from over several steps of one batch, such as {kind: grpo}: beside
    an objective that asks the teacher, or alone with `policy_gradient`. Null, with that objective,
    is one step for each batch and no ratio."""
    training: TrainingSettings = TrainingSettings()
    routing: RoutingSettings | None = None
    """How a student that is a mixture of experts is routed, balanced and watched, such as
    {balance: {kind: reward_bias}}. Null leaves its routers alone."""
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()
    baselines: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict[str, Mapping[str, Any]])
    """Name to settings that differ: the same run again, for the same rows and tokens, shown
    beside this one, such as {cross_entropy: {objective: {kind: cross_entropy}}}. One whose
    objective asks no teacher has no target, so the recipe's move is left out of it."""
    seed: int = 0
    """Everything random follows from it."""
    output: Annotated[str, Field(min_length=1)] = "runs/{name}"
    """Folder of the run; {name} and {seed} are filled in."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of a finished run, optimizer and all; its student is saved anyway."""

    @field_validator("baselines")
    @classmethod
    def _baselines_are_plain(
        cls, value: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Mapping[str, Any]]:
        for name, settings in value.items():
            if name in ("before", "distilled", "teacher", "after"):
                raise ValueError(
                    f"baselines.{name} takes a name that the table of results uses itself; "
                    "it must be another. Rename it."
                )
            kept = {"baselines", "name", "output"} & set(settings)
            if kept:
                raise ValueError(
                    f"baselines.{name}.{min(kept)} is given; it must be left to the recipe, "
                    "which decides it for its baselines. Take it out."
                )
        return value

    @property
    def folder(self) -> str:
        """The output folder with {name} and {seed} filled in."""
        return self.output.replace("{name}", self.name).replace("{seed}", str(self.seed))


def load(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a preset or file, after its dotted overrides.

    Raises:
        ConfigError: a line for each setting that does not exist or has a wrong value.
    """
    return from_tree(read_recipe(source, overrides))


def from_tree(tree: Mapping[str, Any]) -> Recipe:
    """The recipe that a plain tree of settings describes, its baselines proved to be recipes too.

    Raises:
        ConfigError: a line for each setting that does not exist or has a wrong value.
    """
    full = with_shorthands(tree)
    recipe, lines = _validated(full)
    for name in recipe.baselines if recipe else ():
        lines += [f"baselines.{name}.{line}" for line in _validated(_varied(full, name))[1]]
    if recipe is None or lines:
        raise ConfigError("\n".join(lines))
    return recipe


def _validated(tree: Plain) -> tuple[Recipe | None, list[str]]:
    try:
        return Recipe.model_validate(tree), []
    except ValidationError as error:
        return None, complaints(error, Recipe, tree)


def _same_rows(tree: Plain, settings: Plain) -> Plain:
    """Rollouts of another kind with the rows that are shared anyway."""
    rows, others = tree.get("rollouts"), settings.get("rollouts")
    if not isinstance(rows, Mapping) or not isinstance(others, Mapping):
        return {}
    kept = {k: v for k, v in cast("Plain", rows).items() if k in RowSettings.model_fields}
    return {"rollouts": {**kept, **cast("Plain", others)}}


def _varied(tree: Plain, name: str) -> Plain:
    own = {key: value for key, value in tree.items() if key != "baselines"}
    settings = with_shorthands(tree["baselines"][name], partial=True)
    settings |= _same_rows(own, settings)
    full = with_shorthands(merged(own, settings))
    if "move" not in settings and _asks_no_teacher(full.get("objective", {})):
        full["move"] = {"kind": "none"}
    return full


def _asks_no_teacher(objective: Mapping[str, Any]) -> bool:
    try:
        return not from_settings(objective).needs_teacher
    except ConfigError:
        # The recipe that holds it is refused for it, with the path to the mistake.
        return False


def baseline(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one baseline: the same settings but for those that it names."""
    tree = _varied(to_tree(recipe), name)
    tree["name"] = name
    tree["output"] = f"{recipe.folder}/baselines/{name}"
    return from_tree(tree)


def alone(recipe: Recipe) -> list[Recipe]:
    """The recipe without its baselines, then each of them, as recipes to compare."""
    bare = from_tree({**to_tree(recipe), "baselines": {}})
    return [bare, *(baseline(recipe, name) for name in recipe.baselines)]


def varied(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings replaced; another `kind` replaces the whole of its part."""
    return from_tree(merged(to_tree(recipe), settings))


def with_shorthands(tree: Mapping[str, Any], *, partial: bool = False) -> Plain:
    """The tree with what people leave out: `objective: jsd`, a model's name alone, plain kinds.

    Args:
        partial: the tree goes on top of another one, which knows the kinds that are left out.
    """
    full = dict(tree)
    for name, key, kind in (
        ("student", "model", "loaded"),
        ("teacher", "model", "live"),
        ("rollouts", "data", "dataset"),
        ("objective", "kind", None),
        ("move", "kind", None),
        ("policy", "kind", None),
    ):
        value = full.get(name)
        known = partial and not isinstance(value, str)
        if isinstance(value, str):
            value = {key: value}
        if isinstance(value, Mapping):
            part = dict(cast("Mapping[str, Any]", value))
            full[name] = {"kind": kind, **part} if kind and not known else part
    return full


def to_tree(recipe: Recipe, *, defaults: bool = False) -> Plain:
    """The recipe as plain YAML values: what was given, or all of it with defaults written out."""
    full = recipe.model_dump(mode="json")
    return (
        full if defaults else _with_kinds(recipe.model_dump(mode="json", exclude_unset=True), full)
    )


def _with_kinds(given: Any, full: Any) -> Any:  # noqa: ANN401 - YAML values
    """What was given, and every `kind` on the way, which Python code need not write."""
    if isinstance(given, dict) and isinstance(full, dict):
        kinds = {"kind": full["kind"]} if "kind" in full else {}
        return kinds | {name: _with_kinds(value, full[name]) for name, value in given.items()}
    if isinstance(given, list) and isinstance(full, list):
        return [_with_kinds(one, other) for one, other in zip(given, full, strict=True)]
    return given


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out, as a YAML text that reads back to the same."""
    tree = to_tree(recipe, defaults=True)
    try:
        from_tree(tree)
    except ConfigError:
        # A default may be refused once it is written out beside what makes it meaningless.
        tree = to_tree(recipe)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def choices(part: str) -> list[tuple[str, str]]:
    """The kinds of a part, such as `objective`, each with the first line of its docstring."""
    found: list[tuple[str, str]] = []
    for model in models_in(Recipe.__annotations__[part]):
        line = (model.__doc__ or "").strip().splitlines()[0]
        found += [(kind, line) for kind in kinds_of(model)]
    return sorted(found)
