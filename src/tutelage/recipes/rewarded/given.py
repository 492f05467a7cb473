"""What a recipe's rewards come to for the trainer."""

from tutelage.objectives.policies import DrGrpo, Policy
from tutelage.recipes.config import Recipe
from tutelage.rollouts import WritingSettings
from tutelage.training import Groups


def group_size_of(recipe: Recipe) -> int:
    """Completions of one prompt, side by side; 1 where nothing is written."""
    settings = recipe.rollouts
    return settings.completions_per_prompt if isinstance(settings, WritingSettings) else 1


def groups_of(recipe: Recipe) -> Groups:
    """How the trainer finds completions that were compared with each other."""
    return Groups(size=group_size_of(recipe), refuse_silence=recipe.advantages.all_equal == "error")


def policy_of(recipe: Recipe) -> Policy | None:
    """The recipe's policy, with what it leaves to the rollouts filled in."""
    policy = recipe.policy
    if isinstance(policy, DrGrpo) and policy.length is None:
        return policy.model_copy(update={"length": recipe.rollouts.max_completion_tokens})
    return policy
