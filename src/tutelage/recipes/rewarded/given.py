"""What a recipe's rewards come to for the trainer."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from tutelage.models import CausalLM
from tutelage.models.routers import Replay, RouterTap, has_experts, install_biased_routers
from tutelage.objectives.policies import DrGrpo, Policy
from tutelage.recipes.config import Recipe
from tutelage.rollouts import WritingSettings
from tutelage.training import Groups, WatchRouters
from tutelage.training.policy import Routes


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


def routers_to_watch(lm: CausalLM) -> WatchRouters | None:
    """Who listens to the student's routers, and has them repeat themselves; None where it has none.

    Raises:
        ModelError: routers of a class we do not know.
    """
    if not has_experts(lm):
        return None
    control = install_biased_routers(lm)

    @contextmanager
    def watching(routes: Routes | None) -> Generator[RouterTap]:
        order = nullcontext() if routes is None else control.ordered(Replay(routes))
        with order, RouterTap(lm) as tap:
            yield tap

    return watching
