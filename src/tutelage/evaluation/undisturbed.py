"""Looking at a model without leaving a trace: modes and random generators as they were."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

from tutelage.core.seeds import capture_globals, restore_globals


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Evaluation mode inside; afterwards every submodule's own mode and all global generators."""
    modes = [(module, module.training) for module in model.modules()]
    generators = capture_globals()
    model.eval()
    try:
        yield
    finally:
        restore_globals(generators)
        for module, was_training in modes:
            module.training = was_training
