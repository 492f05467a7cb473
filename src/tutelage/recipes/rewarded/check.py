"""What contradicts itself among rewards, groups, policies and batches that serve several steps."""

from collections.abc import Iterator

from tutelage.objectives import Objective, PolicyGradient
from tutelage.objectives.policies import DrGrpo, Policy
from tutelage.objectives.union import WeightedSum
from tutelage.recipes.config import Recipe
from tutelage.recipes.rewarded.given import group_size_of
from tutelage.recipes.rows import writes
from tutelage.rollouts import StudentRolloutSettings, TeacherRolloutSettings, WritingSettings
from tutelage.training.losses import kind_of, policy_contradictions


def contradictions_of_rewards(recipe: Recipe) -> Iterator[str]:
    """One line each: the dotted path, what it is, what it must be, what to do."""
    yield from _of_groups(recipe)
    yield from _of_reuse(recipe)
    yield from _of_rewards(recipe)
    yield from _of_policy(recipe)


def _of_groups(recipe: Recipe) -> Iterator[str]:
    settings, size, training = recipe.rollouts, group_size_of(recipe), recipe.training
    if size > 1 and not isinstance(settings, StudentRolloutSettings | TeacherRolloutSettings):
        yield (
            f"rollouts.completions_per_prompt is {size} with rollouts.kind {settings.kind}, whose "
            "rows come from several places; it must be 1. Leave it out, or use kind: student."
        )
    by_rows = training.cut_batch_by == "rows" and training.updates_per_batch > 1
    rows = training.rows_per_batch if by_rows else training.rows_per_step
    if rows % size:
        named = "training.rows_per_step"
        if by_rows:
            named += f" * updates_per_batch ({training.updates_per_batch})"
        yield (
            f"{named} is {rows}; it must be a multiple of "
            f"rollouts.completions_per_prompt, {size}, for a prompt's completions are compared in "
            f"one {'batch' if by_rows else 'step'}. Round it."
        )


def _of_reuse(recipe: Recipe) -> Iterator[str]:
    """Of several steps on one batch."""
    training, settings = recipe.training, recipe.rollouts
    if training.cut_batch_by == "rows" and training.updates_per_batch == 1:
        yield (
            "training.cut_batch_by is rows and updates_per_batch is 1, which cuts nothing; it must "
            "be left out. Remove it, or raise updates_per_batch."
        )
    name = "updates_per_batch" if training.updates_per_batch > 1 else "epochs_per_batch"
    if training.steps_per_batch == 1:
        return
    if not writes(settings):
        yield (
            f"training.{name} is {getattr(training, name)} with rollouts.kind {settings.kind}, "
            "where nothing is written that several steps could share; it must be 1. Leave it out, "
            "or let the student write."
        )
    elif recipe.policy is None and isinstance(recipe.objective, PolicyGradient):
        yield (
            f"training.{name} is {getattr(training, name)} with policy_gradient and no policy, "
            "whose gradient is right only for the student that wrote; policy must be given. Set "
            "policy.kind, such as grpo."
        )


def _of_rewards(recipe: Recipe) -> Iterator[str]:
    settings, learner = recipe.rollouts, _learner(recipe)
    if recipe.reward is not None:
        if not isinstance(settings, WritingSettings) and not recipe.evaluation.written_rows:
            yield (
                f"reward.kind is {recipe.reward.kind}, and nothing is written that it could judge; "
                "it must be null. Leave it out, let the student write (rollouts.kind: student), or "
                "set evaluation.written_rows."
            )
    elif learner:
        yield (
            f"reward is missing, and {learner} learns from nothing else; it must be given. "
            "Set reward.kind, such as exact_answer."
        )
    if not learner:
        return
    if not isinstance(settings, StudentRolloutSettings):
        yield (
            f"rollouts.kind is {settings.kind} with {learner}, which learns from fresh "
            "completions of the student; it must be student. Change it, or choose an objective "
            "with a teacher."
        )
    elif settings.completions_per_prompt == 1:
        yield (
            f"rollouts.completions_per_prompt is 1, and {learner} compares the completions "
            "of one prompt; it must be 2 or more. Raise it to 4 or 8."
        )


def _learner(recipe: Recipe) -> str:
    """Who learns from rewards, in the words of the recipe; empty where nobody does."""
    if recipe.policy is not None:
        return f"policy.kind {recipe.policy.kind}"
    if isinstance(recipe.objective, PolicyGradient):
        return "policy_gradient"
    return "move.kind reward_temperature" if recipe.move.by_advantage else ""


def _of_policy(recipe: Recipe) -> Iterator[str]:
    policy, settings = recipe.policy, recipe.rollouts
    if policy is None:
        return
    yield from policy_contradictions(policy, recipe.training)
    yield from _of_its_objective(recipe, policy)
    if isinstance(settings, StudentRolloutSettings) and settings.temperature == 0:
        yield (
            "rollouts.temperature is 0 with a policy: all completions of a prompt are the same "
            "then, and none did better; it must be above 0. Raise it."
        )
    if isinstance(policy, DrGrpo) and recipe.advantages.normalise != "none":
        yield (
            f"advantages.normalise is {recipe.advantages.normalise} with policy.kind dr_grpo, "
            "which divides by no deviation; it must be none. Change it, or use grpo."
        )


def _of_its_objective(recipe: Recipe, policy: Policy) -> Iterator[str]:
    """A policy's own part needs no objective; the objective is what is asked of the teacher."""
    objective = recipe.objective
    if isinstance(objective, PolicyGradient):
        fields = type(policy).model_fields
        for name in ("distill", "distill_weight"):
            if getattr(policy, name) != fields[name].default:
                yield (
                    f"policy.{name} is {getattr(policy, name)} with objective.kind "
                    "policy_gradient, which asks no teacher; it must be left out. Remove it, or "
                    "choose an objective such as forward_kl."
                )
        drawn_at = getattr(recipe.rollouts, "temperature", 1.0)
        if objective.temperature not in (1.0, drawn_at):
            yield (
                f"objective.temperature is {objective.temperature:g}, and a policy reads tokens at "
                f"the temperature they are drawn at, {drawn_at:g}; it must be left out. Remove it."
            )
    elif not objective.needs_teacher or _has_policy_gradient(objective):
        yield (
            f"objective.kind is {objective.kind} with policy.kind {kind_of(policy)}; it must be "
            "policy_gradient, to learn from rewards alone, or compare with a teacher and leave "
            "rewards to the policy. Change it."
        )


def _has_policy_gradient(objective: Objective) -> bool:
    if isinstance(objective, WeightedSum):
        return any(_has_policy_gradient(part.objective) for part in objective.parts)
    return isinstance(objective, PolicyGradient)
