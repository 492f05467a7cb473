"""Recipes that learn from rewards: what they may ask for, and what the trainer is given."""

from tutelage.recipes.rewarded.check import contradictions_of_rewards
from tutelage.recipes.rewarded.given import (
    group_size_of,
    groups_of,
    policy_of,
    routers_to_watch,
)

__all__ = [
    "contradictions_of_rewards",
    "group_size_of",
    "groups_of",
    "policy_of",
    "routers_to_watch",
]
