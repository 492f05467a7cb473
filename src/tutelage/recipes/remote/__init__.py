"""A teacher on a server, in recipes: checked before a run, opened, examined; and the server."""

from tutelage.recipes.remote.build import open_remote, who_teaches_there
from tutelage.recipes.remote.check import contradictions_with_remote, of_form, told_of_remote
from tutelage.recipes.remote.examine import look_at_server

__all__ = [
    "contradictions_with_remote",
    "look_at_server",
    "of_form",
    "open_remote",
    "told_of_remote",
    "who_teaches_there",
]
