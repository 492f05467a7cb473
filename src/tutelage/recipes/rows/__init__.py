"""The rows of a run: read and divided, handed to whoever completes them, shown in the log."""

from tutelage.recipes.rows.engines import (
    EngineCloser,
    contradictions_of_engine,
    engine_identity,
    make_vllm,
    watched,
)
from tutelage.recipes.rows.judging import make_judge
from tutelage.recipes.rows.prepare import (
    Rows,
    data_source,
    formatter,
    needs_completions,
    prepare_rows,
    with_views,
)
from tutelage.recipes.rows.scribe import RolloutScribe
from tutelage.recipes.rows.sources import Writers, described, make_rollouts, refuse_no_room, writes

__all__ = [
    "EngineCloser",
    "RolloutScribe",
    "Rows",
    "Writers",
    "contradictions_of_engine",
    "data_source",
    "described",
    "engine_identity",
    "formatter",
    "make_judge",
    "make_rollouts",
    "make_vllm",
    "needs_completions",
    "prepare_rows",
    "refuse_no_room",
    "watched",
    "with_views",
    "writes",
]
