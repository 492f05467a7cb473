"""The routers of a recipe's student: checks, preparation, the owner, its record, and the save."""

from tutelage.recipes.routing.build import (
    TARGETS,
    make_router_owner,
    prepare_routers,
    refuse_dense,
    student_to_save,
)
from tutelage.recipes.routing.scribe import RouterScribe

__all__ = [
    "TARGETS",
    "RouterScribe",
    "make_router_owner",
    "prepare_routers",
    "refuse_dense",
    "student_to_save",
]
